"""Two goals at once, a task and what is retained of other classes: the front, and a choice on it.

Flows in: pairs of shares, higher is better. Flows out: which of them no other beats, and one number
for a pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RULE = "the highest harmonic mean of the metric and val/retained"


def harmonic(one: float, other: float) -> float:
    """The harmonic mean of two shares, as few-shot papers report base and new classes (Zhou et al.
    2022, arXiv:2203.05557): near the lower of the two, 0 where one is 0.

    >>> round(harmonic(0.8, 0.6), 4)
    0.6857
    """
    return 2 * one * other / (one + other) if one > 0 and other > 0 else 0.0


def as_share(metric: str, value: float) -> float:
    """A metric as a share between 0 and 1: a mean log-likelihood becomes the geometric mean of the
    probabilities."""
    return math.exp(value) if metric.endswith("log_likelihood") else value


def standing(task: float, retained: float | None) -> tuple[bool, float]:
    """A key by which `RULE` chooses: the highest is best. Where retention does not apply, the task
    alone counts, below all pairs that have both."""
    return (False, task) if retained is None else (True, harmonic(task, retained))


def front(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """The places of those pairs that no other dominates (at least as good in both, better in one),
    the best task first; of equal pairs all.

    >>> front([(0.9, 0.1), (0.8, 0.5), (0.7, 0.4)])  # the third is worse than the second in both
    [0, 1]
    """
    found: list[int] = []
    best = float("-inf")  # the most retained among all with a higher task
    order = sorted(range(len(pairs)), key=lambda n: (-pairs[n][0], -pairs[n][1], n))
    for n in order:
        if pairs[n][1] > best or (found and pairs[n] == pairs[found[-1]]):
            found.append(n)
            best = pairs[n][1]
    return found
