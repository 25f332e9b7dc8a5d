"""Conformal sets: how ill each class fits an image flows in, and with it a promise flows out.

Of images that are like those of val (exchangeable with them), a set of classes at a confidence of
90 % holds the right one in at least 90 %, whatever the model is worth: a poor one has larger sets
(Vovk et al. 2005; Angelopoulos & Bates 2021, arXiv:2107.07511). That is over val and image drawn
together; of one val set the share varies around it, the more the smaller val is.
"""

from __future__ import annotations

import math

from scipy.special import betaincinv
from torch import Tensor

SLACK = 1e-9  # 0.9 x 10 images are 9, not 9.000000000000002


def split_misfit(probabilities: Tensor) -> Tensor:
    """1 - p, of each class (N, C): the sets of fewest classes on average (Sadinle, Lei & Wasserman
    2019). They may be empty: then no class is likely enough.

    >>> import torch
    >>> split_misfit(torch.tensor([[0.75, 0.25]]))
    tensor([[0.2500, 0.7500]])
    """
    return 1 - probabilities


def adaptive_misfit(probabilities: Tensor) -> Tensor:
    """The probability of all classes that are likelier, of each class (N, C), float64: sets that
    grow where an image is hard, so that hard images are not the ones missed (Romano, Sesia & Candes
    2020, arXiv:2006.02544, whose U is 0 here: equal images get equal sets, and never an empty one).

    >>> import torch
    >>> adaptive_misfit(torch.tensor([[0.25, 0.75]]))
    tensor([[0.7500, 0.0000]], dtype=torch.float64)
    """
    ranked, order = probabilities.double().sort(dim=1, descending=True, stable=True)
    return (ranked.cumsum(1) - ranked).gather(1, order.argsort(dim=1))


def least(confidence: float) -> int:
    """How many val images a set needs that leaves any class out.

    >>> least(0.9), least(0.95)
    (9, 19)
    """
    return math.ceil(confidence / (1 - confidence) - SLACK)


def rejects(images: int, confidence: float) -> bool:
    """Whether of so many val images a set may also be empty because the image is unlike all of
    them, as one in n + 1 is: where the `threshold` can be one rank higher, which pays for it.

    >>> rejects(18, 0.9), rejects(19, 0.9)
    (False, True)
    """
    return _rank(images, confidence) < images


def threshold(misfits: Tensor, confidence: float, higher: int = 0) -> float:
    """The most that a class of a set may have: the smallest of val's own classes' (n,) that the
    share of (n + 1) has, or one `higher` ranks above; infinite, so that no class is left out, of
    fewer images than `least`.

    >>> import torch
    >>> threshold(torch.arange(9) / 8, 0.8), threshold(torch.arange(8) / 8, 0.9)
    (0.875, inf)
    """
    rank = _rank(len(misfits), confidence) + higher
    return float(misfits.double().sort().values[rank - 1]) if rank <= len(misfits) else math.inf


def spread(images: int, confidence: float) -> tuple[float, float] | None:
    """Between what the share of images whose set holds the right class is, in 95 of 100 vals of as
    many images, where no two misfits are equal: it is distributed as Beta(rank, n + 1 - rank)
    (Vovk 2012, Conditional validity of inductive conformal predictors). Where val `rejects`, the
    rank is one higher at most: all images that are taken for unlike val would have been held, or
    none. None where no set leaves any class out.

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
