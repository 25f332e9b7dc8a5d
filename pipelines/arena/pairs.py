"""How far one adapter is ahead of another, and how surely, over images and seeds.

Flows in: each run's answers to its test images. Flows out: the difference of the two means with a
95 % interval that allows for other images and for other seeds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from trainables.statistics.bootstrap import Array, Bootstrap, Difference


@dataclass(frozen=True)
class Answers:
    """A run's answers to the images of one part."""

    right: Array  # (N,) 1 where it is
    clusters: npt.NDArray[np.int64]  # (N,): what is drawn as one: rows of an image, or a class's


Run = Sequence[Answers]  # one part; or base and new, of which the harmonic mean is compared


def paired(ours: Sequence[Run], theirs: Sequence[Run]) -> Difference:
    """The difference of two accuracies, each a mean over S runs, one a seed.

    Two things vary: the seeds, and the images, which the runs share in whole or in part. The
    variance of the mean of S differences is the sum of two parts. The first, `between`, is
    estimated from the spread of the S differences. The second is the part that all runs have in
    common from the images: the bootstrap's variance of their mean, `together`, less the part of
    each run alone, `alone`, which `between` holds already. Each part has Student's factor for the
    number of seeds, or images, that it is estimated from, and the squares are added.

    So the interval holds in 95 % of cases where seeds vary, and in up to 98 % where they do not. It
    is never narrower than the interval for other images alone: two seeds may agree by chance, and
    then say nothing of the images. Base and new have images of their own, drawn independently.
    Where the two differ on m images under any seed, p is 2^(1 - m) at least, as in `Difference`.
    """
    parts, sizes = _numbered([*ours, *theirs])
    seeds, few = len(ours), min(sizes)
    values = _harmonic(*(np.array([one.right.mean() for one in own]) for own in parts))  # (2 S,)
    drawn = _harmonic(*(_drawn(*of) for of in zip(parts, sizes, range(len(parts)), strict=True)))
    gaps, each = values[:seeds] - values[seeds:], drawn[:, :seeds] - drawn[:, seeds:]  # (R, S)
    unbiased = few / (few - 1) if few > 1 else 1.0
    together, alone = unbiased * each.mean(1).var(), unbiased * each.var(0).mean()
    ways = [[(together, few - 1)]]
    if seeds > 1:
        own = (alone - together) / (seeds - 1)
        between = float(np.var(gaps, ddof=1)) / seeds
        ways.append([(max(together - own, 0.0), few - 1), (between, seeds - 1)])
    apart = sum(_differing(own, size) for own, size in zip(parts, sizes, strict=True))
    least = min(1.0, max(2 / (len(each) + 1), 2.0 ** (1 - apart)))
    return _student(float(np.mean(gaps)), ways, least)


def _student(value: float, ways: Sequence[Sequence[tuple[float, int]]], least: float) -> Difference:
    """The difference `value` with its interval and p. Each of the `ways` is a list of variances
    with their degrees of freedom, each with Student's factor of its own; the widest way counts. p
    is `least` at least: a chance of exactly zero is never claimed."""

    def half(p: float) -> float:
        squares = (
            sum(stats.t.isf(p / 2, max(freedom, 1)) ** 2 * part for part, freedom in parts)
            for parts in ways
        )
        return math.sqrt(max(squares))

    width = half(0.05)
    if value == 0 or width == 0:
        p = 1.0 if value == 0 else least
    elif half(least) < abs(value):
        p = least
    else:
        p = float(optimize.brentq(lambda q: half(q) - abs(value), least, 1.0))
    return Difference(value, value - width, value + width, p)


def _numbered(runs: Sequence[Run]) -> tuple[list[list[Answers]], list[int]]:
    """For each part, the clusters of all runs numbered from 0 on, and how many there are."""
    parts, sizes = [], []
    for own in zip(*runs, strict=True):
        known, number = np.unique(
            np.concatenate([one.clusters for one in own]), return_inverse=True
        )
        ends = np.cumsum([len(one.clusters) for one in own])[:-1]
        pieces = zip(own, np.split(number, ends), strict=True)
        parts.append([Answers(one.right, piece) for one, piece in pieces])
        sizes.append(len(known))
    return parts, sizes


def _sums(runs: Sequence[Answers], size: int) -> Array:
    """The number of right answers in each cluster, by run: (clusters, runs)."""
    return np.stack([np.bincount(one.clusters, one.right, size) for one in runs], 1)


def _differing(runs: Sequence[Answers], size: int) -> int:
    """The clusters in which the first half of the runs and the second differ under any seed."""
    ours, theirs = np.split(_sums(runs, size), 2, 1)
    return int((ours != theirs).any(1).sum())


def _drawn(runs: Sequence[Answers], size: int, seed: int) -> Array:
    """The accuracy of each run on one part in each resample: (R, runs)."""
    sums = _sums(runs, size)
    counts = np.stack([np.bincount(one.clusters, minlength=size) for one in runs], 1)
    return _bootstrap(size, seed).means(sums.astype(np.float64), counts.astype(np.float64))


def _harmonic(first: Any, second: Any = None) -> Any:
    """The harmonic mean, 0 where both are 0; of one number, that number."""
    if second is None:
        return first
    return 2 * first * second / np.maximum(first + second, np.finfo(np.float64).tiny)


@functools.lru_cache(maxsize=8)
def _bootstrap(clusters: int, seed: int) -> Bootstrap:
    """A bootstrap, kept, so that all pairs of a table see the same resamples."""
    return Bootstrap(clusters, seed=seed)
