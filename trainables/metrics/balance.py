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
    2022, arXiv:2203.05557): near the lower of the two, 0 where one is 0."""
    return 2 * one * other / (one + other) if one > 0 and other > 0 else 0.0


def as_share(metric: str, value: float) -> float:
    """A metric between 0 and 1; a log-likelihood is the mean probability's, in geometric mean."""
    return math.exp(value) if metric.endswith("log_likelihood") else value


def standing(task: float, retained: float | None) -> tuple[bool, float]:
    """What is highest for the choice by `RULE`. Where retention is not applicable, the task alone
    counts, below all that have both."""
    return (False, task) if retained is None else (True, harmonic(task, retained))


def front(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """The places of those pairs that no other dominates (at least as good in both, better in one),
    the best task first; of equal pairs all."""
    found: list[int] = []
    best = float("-inf")  # the most retained among all with a higher task
    order = sorted(range(len(pairs)), key=lambda n: (-pairs[n][0], -pairs[n][1], n))
    for n in order:
        if pairs[n][1] > best or (found and pairs[n] == pairs[found[-1]]):
            found.append(n)
            best = pairs[n][1]
    return found
