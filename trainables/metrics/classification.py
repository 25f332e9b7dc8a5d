"""Classification metrics: scores of images among classes flow in, one number an image flows out.

Ties are broken at random, and every number is the exact expectation over that, as in retrieval.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import minimize_scalar
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


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """What each image (N,) counts so that a mean over images is that over the classes that have
    any: the inverse of its class's images, (N,) float64 with a mean of 1."""
    sizes = torch.bincount(labels, minlength=classes)
    return len(labels) / ((sizes > 0).sum() * sizes[labels].double())


def log_likelihood(scores: Tensor, labels: Tensor, scale: float) -> Tensor:
    """log softmax(scale x scores) of each image's own class: (N,) float64."""
    return -F.cross_entropy(scale * scores.double(), labels, reduction="none")


def per_image(scores: Tensor, labels: Tensor, scale: float) -> dict[str, Tensor]:
    """Every metric's value for every image, to be summarised by its mean: (N,) float64."""
    right = hits(scores, labels)
    return {
        "accuracy": right,
        "class_accuracy": right * class_weights(labels, scores.shape[1]),
        "log_likelihood": log_likelihood(scores, labels, scale),
    }


def least_surprising(scores: Tensor, surprise: Callable[[float], float]) -> float:
    """The scale of scores (N, C) whose surprise, a convex function of it, is least: by Brent's
    bounded search, exact to 1e-6 of its logarithm, from 1e-3 to 1e4 of what spreads them by 1."""
    spread = max(float(scores.std()), 1e-9)
    found = minimize_scalar(
        lambda log_scale: surprise(math.exp(log_scale)),
        bounds=(math.log(1e-3 / spread), math.log(1e4 / spread)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


def calibrated_likelihood(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """The mean `log_likelihood` after temperature scaling (Guo et al. 2017, arXiv:1706.04599), and
    the scale. NaN, at 1, of scores that are no numbers, as of a run that diverged in its last step.

    Where every image is right, the likeliest scale has no end, and all such scores would be equally
    likely. So it is the likeliest for labels of which each of n counts (n + 1) / (n + 2), the rest
    falling to the other classes alike: Platt's (1999) guard against fitting few. That is concave in
    the scale."""
    scores = scores.double()
    if not scores.isfinite().all():
        return math.nan, 1.0
    own = scores.gather(1, labels[:, None])[:, 0]
    others = (scores.sum(1) - own) / max(1, scores.shape[1] - 1)
    target = torch.lerp(own, others, 1 / (len(labels) + 2))

    def surprise(scale: float) -> float:
        return -float((scale * target - (scale * scores).logsumexp(1)).mean())

    scale = least_surprising(scores, surprise)
    return float(log_likelihood(scores, labels, scale).mean()), scale


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
