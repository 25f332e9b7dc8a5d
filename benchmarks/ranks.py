"""Exact retrieval ranks in both directions, against a sort of every row of the score matrix."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Outputs, Row
from benchmarks.models import normal
from trainables.metrics.retrieval import mutual_ranks

IMAGES, CAPTIONS, WIDTH = 5_000, 5, 512  # COCO's test split, five captions an image


def argsorted(scores: Tensor, positives: list[list[int]]) -> Tensor:
    """The place of each row's best positive, 0 is the first: (rows,) int64. As LAVIS does it."""
    ranks = np.empty(len(scores), np.int64)
    for row, score in enumerate(scores.numpy()):
        order = np.argsort(score)[::-1]
        ranks[row] = min(np.where(order == one)[0][0] for one in positives[row])
    return torch.from_numpy(ranks)


def coco() -> Case:
    groups = torch.arange(IMAGES)
    caption_groups = groups.repeat_interleave(CAPTIONS)
    images = F.normalize(normal(IMAGES, WIDTH, seed=0), dim=-1)
    noise = F.normalize(normal(IMAGES * CAPTIONS, WIDTH, seed=1), dim=-1)
    texts = F.normalize(0.2 * images[caption_groups] + noise, dim=-1)  # R@1 like that of CLIP
    of_image = groups.repeat_interleave(CAPTIONS).tolist()
    captions_of = torch.arange(IMAGES * CAPTIONS).view(IMAGES, CAPTIONS).tolist()

    def baseline() -> Outputs:
        scores = images @ texts.T  # (5,000, 25,000)
        to_text = argsorted(scores, captions_of)
        to_image = argsorted(scores.T.contiguous(), [[image] for image in of_image])
        return {"i2t": to_text, "t2i": to_image}

    def ours() -> Outputs:
        to_text, to_image = mutual_ranks(images, texts, groups, caption_groups)
        return {"i2t": to_text.above, "t2i": to_image.above}

    return Case(baseline, ours)


ROWS = (
    Row("ranks/coco", "ranks of 5,000 images x 25,000 captions, both ways, none differs",
        4.3, coco, 0.0),
)  # fmt: skip
