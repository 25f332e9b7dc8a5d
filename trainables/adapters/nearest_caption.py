"""`nearest_caption`: the baseline of captioning.

Flows in: images (B, e). Flows out: B captions that people wrote about similar images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.adapters.base import Adapter, product
from trainables.config import Task, Value
from trainables.errors import ConfigError
from trainables.features.split import SplitFeatures


@dataclass(frozen=True)
class NearestCaptionConfig:
    """Nothing to choose."""


class NearestCaption(Adapter[NearestCaptionConfig]):
    """The first caption of the training image with the highest cosine similarity, by the frozen
    tower; nothing is trained.

    A captioner that is worth its training does better (Devlin et al. 2015, arXiv:1505.04467, show
    how good this baseline is). Its checkpoint holds no images, so it speaks only after `prepare`.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("nearest_caption"), backbone, pairs)
    >>> adapter.captions(pairs.image_embeds[:2])  # two images that it was prepared with
    ['a red dog in the park', 'a green dog in the park']
    """

    Config: ClassVar[type[NearestCaptionConfig]] = NearestCaptionConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {"captioning": {}}
    known: tuple[Tensor, list[str]] | None = None  # (N, e) of unit length, and a caption of each

    def prepare(self, train: SplitFeatures) -> None:
        images = F.normalize(train.image_embeds.float(), dim=-1)
        first = torch.searchsorted(train.caption_rows, torch.arange(len(train.groups)))
        texts = train.texts()
        self.known = images.to(self.backbone.device), [texts[row] for row in first.tolist()]

    def captions(self, image_embeds: Tensor, frames: Tensor | None = None) -> list[str]:
        del frames
        if self.known is None:
            raise ConfigError("`nearest_caption` has no captions without its training images.")
        images, texts = self.known
        nearest = product(F.normalize(image_embeds.float(), dim=-1), images.T).argmax(1)
        return [texts[row] for row in nearest.tolist()]
