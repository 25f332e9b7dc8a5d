"""How far probabilities are to be believed.

Flows in: the probabilities (N, C) of images, or the likeliest class's (N,), and the labels. Flows
out: one number an image, or one of the split.

A model is calibrated if, of the images to which it gives a class with probability p, the share p is
of that class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.metrics.classification import least_surprising

BINS = 15
DRAWS = 400  # sets of labels that chance is judged by


@dataclass(frozen=True)
class Bin:
    """The images whose likeliest class has a probability in a bin."""

    images: int
    confidence: float  # the mean of that probability
    accuracy: float


def fit_scale(scores: Tensor, labels: Tensor) -> float:
    """The factor of similarities (N, C) under which their softmax is calibrated: the scale that
    makes the labels (N,) likeliest (temperature scaling, Guo et al. 2017, arXiv:1706.04599).

    Where all N images are right, no scale is the likeliest. So the fit counts one image more as
    missed: the least sure of those that are right, with the class after its own as its label.

    Platt's guard, as in `calibrated_likelihood`, would give all other classes a share of what is
    taken from the right one. A model that is nearly always right would then be made to doubt
    itself.

    >>> scores, labels = torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.zeros(4, dtype=torch.long)
    >>> round(fit_scale(scores, labels), 4)  # log 4: four are right, and one more is not
    1.3863
    """
    scores = scores.double()
    own = scores.gather(1, labels[:, None])[:, 0]
    next_best = scores.scatter(1, labels[:, None], -math.inf).max(1).values
    lead = torch.where(own > next_best, own - next_best, math.inf)
    missed = int(lead.argmin())
    weight = float(lead[missed].isfinite())

    def surprise(scale: float) -> float:
        norms = (scale * scores).logsumexp(1)
        more = norms[missed] - scale * next_best[missed]
        return float((norms - scale * own).sum() + weight * more)

    return least_surprising(scores, surprise)


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The squared distance of each image's probabilities (N, C) from its label's, in [0, 2]: (N,)
    float64 (Brier 1950, Monthly Weather Review 78). Like likelihood it is proper: in expectation,
    the true probabilities have the lowest value.

    >>> brier(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    tensor([0.1250], dtype=torch.float64)
    """
    probabilities = probabilities.double()
    truth = F.one_hot(labels, probabilities.shape[1])
    return (probabilities - truth).square().sum(1)


def reliability(confidences: Tensor, right: Tensor) -> list[Bin]:
    """The reliability diagram (Niculescu-Mizil & Caruana 2005): the images by the probability of
    their likeliest class (N,), in `BINS` bins of equal width, with whether that class is right
    (N,). Empty bins are left out.

    >>> [b.images for b in reliability(torch.tensor([0.75, 0.77, 0.1]), torch.ones(3))]
    [1, 2]
    """
    numbers = _bins(confidences)
    images = torch.bincount(numbers, minlength=BINS)
    sums = [torch.bincount(numbers, of.double(), BINS) for of in (confidences, right)]
    return [
        Bin(count, float(confidence) / count, float(accuracy) / count)
        for count, confidence, accuracy in zip(images.tolist(), *sums, strict=True)
        if count
    ]


def calibration_error(confidences: Tensor, right: Tensor) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3): the mean
    distance of accuracy and confidence over `reliability`'s bins, weighted by their images.

    The error is never below 0, and with few images it is far from 0 however true the probabilities
    are: see `error_by_chance`.

    >>> calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([1.0, 0.0]))
    0.25
    """
    bins = reliability(confidences, right)
    total = sum(one.images * abs(one.accuracy - one.confidence) for one in bins)
    return total / len(confidences)


def error_by_chance(confidences: Tensor, seed: int = 0) -> float:
    """The bound under which `calibration_error` stays in 95 of 100 cases where these probabilities
    (N,) are true, found by drawing labels from them (Broecker & Smith 2007, Weather and Forecasting
    22)."""
    numbers, confidences = _bins(confidences), confidences.double()
    random, found = torch.Generator().manual_seed(seed), []
    for _ in range(DRAWS):
        uniform = torch.rand(len(confidences), generator=random, dtype=torch.float64)
        gaps = torch.bincount(numbers, (uniform < confidences).double() - confidences, BINS)
        found.append(float(gaps.abs().sum()) / len(confidences))
    return float(np.quantile(found, 0.95))


def _bins(confidences: Tensor) -> Tensor:
    """The number of each confidence's bin, (N,); a bin's upper end belongs to it, as in Guo et
    al."""
    return ((confidences.double() * BINS).ceil().long() - 1).clamp(0, BINS - 1)
