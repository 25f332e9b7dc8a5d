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
    """The chance that the highest of the scores (N, C) is the image's own class's: (N,) float64.

    >>> hits(torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([0, 1]))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    own = scores.gather(1, labels[:, None])
    best = (own == scores.max(1, keepdim=True).values)[:, 0]
    return best.double() / (scores == own).sum(1)


def by_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of `values` (N,) over the images of each class: (C,) float64; NaN for a class
    without images.

    >>> by_class(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]), 2)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    sums = torch.zeros(classes, dtype=torch.float64).index_add(0, labels, values.double())
    return sums / torch.bincount(labels, minlength=classes)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights (N,) float64 under which a mean over images is the mean over the classes that have
    images: the inverse of the number of images of its class, scaled to a mean of 1."""
    sizes = torch.bincount(labels, minlength=classes)
    return len(labels) / ((sizes > 0).sum() * sizes[labels].double())


def log_likelihood(scores: Tensor, labels: Tensor, scale: float) -> Tensor:
    """log softmax(scale x scores) at each image's own class: (N,) float64.

    >>> log_likelihood(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), 100.0).exp()
    tensor([0.5000], dtype=torch.float64)
    """
    return -F.cross_entropy(scale * scores.double(), labels, reduction="none")


def per_image(scores: Tensor, labels: Tensor, scale: float) -> dict[str, Tensor]:
    """The value of every metric for every image, (N,) float64 each; a metric is their mean."""
    right = hits(scores, labels)
    return {
        "accuracy": right,
        "class_accuracy": right * class_weights(labels, scores.shape[1]),
        "log_likelihood": log_likelihood(scores, labels, scale),
    }


def least_surprising(scores: Tensor, surprise: Callable[[float], float]) -> float:
    """The scale of scores (N, C) with the least `surprise`, a convex function of the scale. Found
    by Brent's bounded search, exact to 1e-6 of its logarithm, between 1e-3 and 1e4 times the scale
    that gives the scores a spread of 1."""
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
    the scale. For scores that are not finite, as of a run that diverged in its last step: NaN, and
    a scale of 1.

    Where every image is right, no scale is the likeliest, and all such scores would be equally
    likely. So the scale is fitted to softened labels: of n images each label counts (n + 1) / (n +
    2), and the other classes share the rest alike (Platt's (1999) guard against fitting few). The
    fit is concave in the scale.
    """
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
    """The metrics of similarities (N, C): `accuracy` over images, `class_accuracy` the mean over
    classes, and `log_likelihood` of the labels under softmax(scale x scores). Small splits need the
    last: they have few distinct accuracies to choose between.

    >>> scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> found = classification_metrics(scores, torch.tensor([0, 1, 1]), 10.0)
    >>> round(found["accuracy"], 4), found["class_accuracy"]
    (0.6667, 0.75)
    """
    right = hits(scores, labels)
    return {
        "accuracy": float(right.mean()),
        "class_accuracy": float(by_class(right, labels, scores.shape[1]).nanmean()),
        "log_likelihood": float(log_likelihood(scores, labels, scale).mean()),
    }
