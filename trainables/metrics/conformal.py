"""Conformal sets: for each image, the classes that cannot be ruled out at a chosen confidence.

Flows in: the misfit of each class to each image, (N, C), and val's misfits (n,) of the right
classes. Flows out: the threshold at which a class is left out.

For images like those of val (exchangeable with them), a set at a confidence of 90 % holds the right
class in at least 90 % of cases, however good the model is; a poor model has larger sets (Vovk et
al. 2005; Angelopoulos & Bates 2021, arXiv:2107.07511). The 90 % are over val and image drawn
together. With one given val, the share varies around them, the more the smaller val is.
"""

from __future__ import annotations

import math

from scipy.special import betaincinv
from torch import Tensor

SLACK = 1e-9  # 0.9 x 10 images are 9, not 9.000000000000002


def split_misfit(probabilities: Tensor) -> Tensor:
    """1 - p for each class (N, C): the smallest sets on average (Sadinle, Lei & Wasserman 2019). A
    set may be empty, where no class is likely enough.

    >>> import torch
    >>> split_misfit(torch.tensor([[0.75, 0.25]]))
    tensor([[0.2500, 0.7500]])
    """
    return 1 - probabilities


def adaptive_misfit(probabilities: Tensor) -> Tensor:
    """For each class (N, C), the probability of all classes that are likelier, in float64. These
    sets grow on hard images, so that the misses are spread over easy and hard ones (Romano, Sesia &
    Candes 2020, arXiv:2006.02544, with U = 0: equal images get equal sets, and no set is empty).

    >>> import torch
    >>> adaptive_misfit(torch.tensor([[0.25, 0.75]]))
    tensor([[0.7500, 0.0000]], dtype=torch.float64)
    """
    ranked, order = probabilities.double().sort(dim=1, descending=True, stable=True)
    return (ranked.cumsum(1) - ranked).gather(1, order.argsort(dim=1))


def least(confidence: float) -> int:
    """The least number of val images with which a set can leave any class out.

    >>> least(0.9), least(0.95)
    (9, 19)
    """
    return math.ceil(confidence / (1 - confidence) - SLACK)


def rejects(images: int, confidence: float) -> bool:
    """Whether, with so many val images, a set may also be empty because its image is unlike all of
    val. One in n + 1 images is, so the `threshold` must have room for one rank more.

    >>> rejects(18, 0.9), rejects(19, 0.9)
    (False, True)
    """
    return _rank(images, confidence) < images


def threshold(misfits: Tensor, confidence: float, higher: int = 0) -> float:
    """The largest misfit of a class in a set: the smallest of val's own misfits (n,) such that the
    share `confidence` of (n + 1) is at or below it, or the one `higher` ranks above. With fewer
    images than `least`, infinite: no class is left out.

    >>> import torch
    >>> threshold(torch.arange(9) / 8, 0.8), threshold(torch.arange(8) / 8, 0.9)
    (0.875, inf)
    """
    rank = _rank(len(misfits), confidence) + higher
    return float(misfits.double().sort().values[rank - 1]) if rank <= len(misfits) else math.inf


def spread(images: int, confidence: float) -> tuple[float, float] | None:
    """The interval that holds, for 95 of 100 vals of this size, the share of images whose set has
    the right class, where no two misfits are equal. The share is distributed as Beta(rank, n + 1 -
    rank) (Vovk 2012, Conditional validity of inductive conformal predictors). Where val `rejects`,
    the rank is one higher at most: it depends on whether the sets of the rejected images would have
    held the right class. None where no set leaves any class out.

    >>> [round(end, 3) for end in spread(99, 0.9)]
    [0.834, 0.958]
    >>> spread(8, 0.9)
    """
    rank = _rank(images, confidence)
    if rank > images:
        return None
    most = rank + rejects(images, confidence)
    ends = (rank, 0.025), (most, 0.975)
    low, high = (float(betaincinv(at, images + 1 - at, end)) for at, end in ends)
    return low, high


def _rank(images: int, confidence: float) -> int:
    return math.ceil((images + 1) * confidence - SLACK)
