"""`ss_text`: one step from the texts towards the classes' images.

Flows in: labelled images (N, e). Flows out: one vector a class (C, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer

from trainables.adapters.base import Adapter, Classifier, product
from trainables.adapters.shared import unit
from trainables.config import Task, TrainConfig, Value
from trainables.data.batches import Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone


@dataclass(frozen=True)
class SsTextConfig:
    """Nothing to set: the method is made for data without val."""


class SsText(Adapter[SsTextConfig]):
    """Similarities of the feature f to w_c = t_c + (N_c / N) tau sum of the f of class c, all of
    unit length.

    SS-Text: Silva-Rodriguez et al. 2025, "Few-shot, now for real" (MICCAI): the minimum of a
    linearised cross-entropy plus lambda_c / 2 |w_c - t_c|^2 with lambda_c = 1 / N_c. t (C, e) are
    zero-shot's texts, N_c of the N training images are of class c. Nothing is chosen.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("ss_text"), backbone, train)
    >>> adapter.weight.shape  # (C, e)
    torch.Size([3, 16])
    """

    Config: ClassVar[type[SsTextConfig]] = SsTextConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {"classification": {"epochs": 0}}

    weight: Tensor  # (C, e)

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("weight", UninitializedBuffer())

    def prepare(self, train: SplitFeatures) -> None:
        assert train.labels is not None
        assert train.classes is not None
        texts = train.classes.text_embeds(self.backbone).cpu().double()
        counts = torch.bincount(train.labels, minlength=len(texts))[:, None]  # (C, 1)
        sums = torch.zeros_like(texts).index_add_(0, train.labels, unit(train.image_embeds))
        weight = texts + counts / len(train.labels) * self.tau * sums
        self.weight = F.normalize(weight, dim=-1).float()

    @property
    def open_classes(self) -> bool:
        return False

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        del tokens, text_embeds

        def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
            del hidden
            return product(F.normalize(image_embeds.float(), dim=-1), self.weight.T)

        return similarity
