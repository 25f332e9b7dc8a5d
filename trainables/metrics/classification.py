"""Classification metrics: scores of images among classes flow in, one number an image flows out.

Ties are broken at random, and every number is the exact expectation over that, as in retrieval.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """The chance that the highest of the scores (N, C) is the image's own class's: (N,) float64."""
    own = scores.gather(1, labels[:, None])
    best = (own == scores.max(1, keepdim=True).values)[:, 0]
    return best.double() / (scores == own).sum(1)


def by_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of `values` (N,) over the images of each class: (C,) float64; NaN without images."""
    sums = torch.zeros(classes, dtype=torch.float64).index_add(0, labels, values.double())
    return sums / torch.bincount(labels, minlength=classes)


def log_likelihood(scores: Tensor, labels: Tensor, scale: float) -> Tensor:
    """log softmax(scale x scores) of each image's own class: (N,) float64."""
    return -F.cross_entropy(scale * scores.double(), labels, reduction="none")


def classification_metrics(scores: Tensor, labels: Tensor, scale: float) -> dict[str, float]:
    """Of (N, C) similarities: `accuracy` over images, `class_accuracy` over classes (their mean),
    and `log_likelihood` of the labels under softmax(scale x scores), which small splits need: they
    have few accuracies to choose between."""
    right = hits(scores, labels)
    return {
        "accuracy": float(right.mean()),
        "class_accuracy": float(by_class(right, labels, scores.shape[1]).nanmean()),
        "log_likelihood": float(log_likelihood(scores, labels, scale).mean()),
    }
