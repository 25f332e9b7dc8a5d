"""What chance alone gives: random vectors and their nearest words, and p-values corrected.

Flows in: a vocabulary, the norms of learned vectors, a seed. Flows out: distances of a null, and
p-values that allow for their number.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import false_discovery_control
from torch import Tensor
from torch.nn import functional as F

from trainables.models.vocabulary import Measure, Vocabulary
from trainables.statistics.bootstrap import holm

Floats = npt.NDArray[Any]
DRAWS_A_PASS = 256


def sphere(shape: tuple[int, ...], seed: int) -> Tensor:
    """Directions uniform on the sphere of the last axis."""
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def null_distances(
    vocabulary: Vocabulary, norms: Tensor, measure: Measure, directions: Tensor
) -> Floats:
    """The distance from each direction, at each norm, to its nearest word: (R, n). For the cosine,
    which does not depend on the norm, (1, n)."""
    columns = []
    table = vocabulary.unit if measure == "cosine" else vocabulary.vectors
    for some in directions.to(table).split(DRAWS_A_PASS):
        dots = some @ table.T  # (n, W)
        if measure == "cosine":
            columns.append(1 - dots.amax(1).double().cpu()[None])
        else:
            columns += [_lowest(row, vocabulary.squares, norms)[:, None] for row in dots]
    return torch.cat(columns, 1).numpy()


def _lowest(dots: Tensor, squares: Tensor, norms: Tensor) -> Tensor:
    """The least distance of r u to the words e, for each norm r: (R,).

    The squared distance is r^2 + |e|^2 - 2 r u.e: apart from r^2, a line in r for each word. Only a
    word below the crossing of the two lines that are lowest at the ends can be lowest in between.
    """
    ends = norms[norms.argmin()], norms[norms.argmax()]
    first, last = (int((squares - 2 * float(r) * dots).argmin()) for r in ends)
    rise = float(dots[last] - dots[first])
    cross = float(squares[last] - squares[first]) / (2 * rise) if rise > 0 else float(ends[0])
    heights = squares - 2 * cross * dots
    keep = heights <= torch.maximum(heights[first], heights[last])
    lines = squares[keep].double().cpu() - 2 * norms[:, None].cpu() * dots[keep].double().cpu()
    return (norms.cpu().square() + lines.amin(1)).clamp(min=0).sqrt()


def correct(p: Floats, method: Literal["holm", "bh"]) -> Floats:
    """p-values corrected for their number, by Holm (1979: the chance of any false claim) or by
    Benjamini and Hochberg (1995: the expected share of false claims among all claims).

    >>> correct(np.array([0.01, 0.02, 0.9]), "bh")
    array([0.03, 0.03, 0.9 ])
    """
    return np.array(holm(p.tolist())) if method == "holm" else false_discovery_control(p)
