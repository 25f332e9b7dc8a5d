"""The median stopping rule (Golovin et al. 2017, "Google Vizier").

Flows in: the values of trials, each epoch in its turn. Flows out: whether a trial goes on. The
verdicts equal those of Ray's `MedianStoppingRule`, which averages all trials anew at each result.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler

LEAST = 3  # other trials that an epoch must have seen


class Median(FIFOScheduler):
    """Stops a trial whose best value is below the median of the other trials, each by the average
    of its epochs from `grace` on."""

    def __init__(self, metric: str, grace: int) -> None:
        super().__init__()
        self.of, self.grace = metric, grace
        self.best: dict[str, float] = {}
        self.values: dict[str, list[float]] = defaultdict(list)  # from `grace` on
        self.means: dict[int, list[float]] = defaultdict(list)  # by epoch; the lowest trial first
        self.stopped: set[str] = set()

    def on_trial_result(self, _: Any, trial: Any, result: dict[str, Any]) -> str:
        own, epoch, value = trial.trial_id, result["epoch"], result[self.of]
        if own in self.stopped:  # and goes on all the same
            return str(self.CONTINUE)
        self.best[own] = best = max(self.best.get(own, value), value)
        if epoch < self.grace:
            return str(self.CONTINUE)
        self.values[own].append(value)
        means = self.means[epoch]
        if len(means) >= LEAST and max(middle(means), best) != best:
            self.stopped.add(own)
        if math.isfinite(mean := float(np.mean(self.values[own]))):
            insort(means, mean)
        return str(self.STOP if own in self.stopped else self.CONTINUE)


def middle(ordered: list[float]) -> float:
    half, odd = divmod(len(ordered), 2)
    return ordered[half] if odd else (ordered[half - 1] + ordered[half]) / 2
