"""From clips to the frozen tower: a clip as its frames, or as their mean.

Flows in: the bytes of a shard's row, or an opened clip; how many frames, by which rule. Flows out:
uint8 squares (F, 3, R, R) for the image tower, or its embeddings of them (F, e). A still image
counts as a clip in which nothing happens: all its frames are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor

from trainables.media.clips import Clip, Rule, Span, is_clip, sample
from trainables.media.images import decode
from trainables.media.preprocess import Preprocess
from trainables.models.backbone import Backbone
from trainables.models.image_tower import frozen_embeds


@dataclass(frozen=True)
class Frames:
    """How a clip is seen: by `count` frames, or with 0 by its first frame alone."""

    count: int = 0  # F
    rule: Rule = "uniform"

    def squares(self, preprocess: Preprocess, data: bytes) -> Tensor:
        """A row's image or clip: uint8 (3, R, R), or (F, 3, R, R) where `count` is above 0."""
        if not self.count:
            return preprocess.apply(decode(data))
        if is_clip(data):
            return self.of_clip(preprocess, Clip.open(data))
        return preprocess.apply(decode(data)).repeat(self.count, 1, 1, 1)

    def of_clip(self, preprocess: Preprocess, clip: Clip, span: Span | None = None) -> Tensor:
        """The chosen frames of a clip, or of a span of it: uint8 (F, 3, R, R)."""
        frames = clip.frames(sample(clip, self.count, self.rule, span))
        return torch.stack([preprocess.apply(frame) for frame in frames])


STILLS = Frames()
VERSION = 1  # in the key of every store that holds clips: raise it when the frames change


def clip_versions() -> dict[str, str]:
    """The versions of what turns a clip into frames, besides what turns an image into pixels."""
    return {"frames": str(VERSION), "av": metadata.version("av")}


def embed_clip(
    backbone: Backbone, clip: Clip, count: int, rule: Rule = "uniform", span: Span | None = None
) -> Tensor:
    """The frozen tower's embeddings of `count` frames, not normalised: (F, e). Their mean stands
    for the clip wherever one embedding is wanted."""
    squares = Frames(count, rule).of_clip(backbone.preprocess, clip, span)
    return frozen_embeds(backbone, squares)


def embed_frames(backbone: Backbone, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Squares (B, F, 3, R, R) to the mean of the frames' embeddings (B, e) and these (B, F, e)."""
    embeds = frozen_embeds(backbone, squares.flatten(0, 1)).unflatten(0, squares.shape[:2])
    return embeds.mean(1), embeds
