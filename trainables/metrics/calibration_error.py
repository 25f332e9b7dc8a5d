"""How far probabilities are to be believed: those of images among classes and the images' labels
flow in, one number an image or a split flows out.

A model is calibrated where, of the images that it gives a class a probability of p, a share p is of
that class.
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
    """What to multiply similarities (N, C) by, so that their softmax is calibrated: the scale under
    which the labels (N,) are likeliest (temperature scaling, Guo et al. 2017, arXiv:1706.04599).

    Where all N are right, that has no end. So it is fitted as if one image more had been missed:
    the least sure of those that are right, its label that of the class after its own.

    Platt's guard (`calibrated_likelihood`) lets all other classes share what is taken from the own
    one, which makes a model that is nearly always right doubt itself.

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
    float64 (Brier 1950, Monthly Weather Review 78). Like likelihood it is proper: lowest, in
    expectation, for the true probabilities.

    >>> brier(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    tensor([0.1250], dtype=torch.float64)
    """
    probabilities = probabilities.double()
    truth = F.one_hot(labels, probabilities.shape[1])
    return (probabilities - truth).square().sum(1)


def reliability(confidences: Tensor, right: Tensor) -> list[Bin]:
    """The reliability diagram (Niculescu-Mizil & Caruana 2005): of the likeliest class of each
    image its probability (N,) and whether it is right (N,), in `BINS` bins of equal width; those
    that are empty are left out."""
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
    distance of accuracy and confidence over `reliability`'s bins, by their images.

    It is never below 0, and of few images never near it, however true the probabilities are: see
    `error_by_chance`.

    >>> calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([1.0, 0.0]))
    0.25
    """
    bins = reliability(confidences, right)
    total = sum(one.images * abs(one.accuracy - one.confidence) for one in bins)
    return total / len(confidences)


def error_by_chance(confidences: Tensor, seed: int = 0) -> float:
    """What `calibration_error` is at most, in 95 of 100 cases, where these probabilities (N,) are
    true: labels drawn by them (Broecker & Smith 2007, Weather and Forecasting 22)."""
    numbers, confidences = _bins(confidences), confidences.double()
    random, found = torch.Generator().manual_seed(seed), []
    for _ in range(DRAWS):
        uniform = torch.rand(len(confidences), generator=random, dtype=torch.float64)
        gaps = torch.bincount(numbers, (uniform < confidences).double() - confidences, BINS)
        found.append(float(gaps.abs().sum()) / len(confidences))
    return float(np.quantile(found, 0.95))


def _bins(confidences: Tensor) -> Tensor:
    """The number of each one's bin; the upper end belongs to a bin, as in Guo et al.: (N,)."""
    return ((confidences.double() * BINS).ceil().long() - 1).clamp(0, BINS - 1)
