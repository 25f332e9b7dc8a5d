"""What a search may spend, what it has spent, and when more of it would not pay.

Flows in: the study. Flows out: epochs left, for the race between adapters; whether to go on; and
the same in words. What was spent stands in the journal, so a resumed search goes on counting.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.searching.study import DONE, Search, best_value

CLOCK = "seconds"  # of the search, in the study's attributes
STALE = 24  # trials that ended without a better one, at least, before a search ends by itself


def epochs_of(trial: FrozenTrial) -> int:
    """How many a trial has reported."""
    return max(trial.intermediate_values, default=0)


class Budget:
    """Trials, epochs of all trials together, minutes: whichever is used up first."""

    def __init__(self, search: Search, study: optuna.Study) -> None:
        self.search, self.study = search, study
        self.before = float(study.user_attrs.get(CLOCK, 0.0))
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of this and of former drivers."""
        return self.before + time.monotonic() - self.started

    def note(self) -> None:
        """Write down how long the search has taken."""
        if self.search.minutes:
            self.study.set_user_attr(CLOCK, self.seconds)

    @property
    def late(self) -> bool:
        """No trial may go on."""
        return 0 < 60 * self.search.minutes <= self.seconds

    def over(self) -> bool:
        """No further trial is to be begun."""
        trials = self.study.get_trials(deepcopy=False)
        return (
            0 < self.search.trials <= _asked(trials)
            or 0 < self.search.epochs_total <= sum(map(epochs_of, trials))
            or self.late
            or (self.search.stops and stale(trials))
        )

    def left(self) -> float:
        """Epochs that are left to train, as far as can be told."""
        search, trials = self.search, self.study.get_trials(deepcopy=False)
        spent = sum(map(epochs_of, trials))
        ended = sum(trial.state in DONE for trial in trials)
        each = spent / ended if ended else search.epochs / 3
        found = []
        if search.trials:
            found.append((search.trials - _asked(trials)) * each)
        if search.epochs_total:
            found.append(float(search.epochs_total - spent))
        if search.minutes:
            found.append((60 * search.minutes - self.seconds) * spent / max(self.seconds, 1e-9))
        return max(0.0, min(found, default=float("inf")))

    def share(self) -> float:
        """Of the budget, what is used up, from 0 to 1."""
        search, trials = self.search, self.study.get_trials(deepcopy=False)
        ended = sum(trial.state in DONE for trial in trials)
        found = [0.0]
        if search.trials:
            found.append(ended / search.trials)
        if search.epochs_total:
            found.append(sum(map(epochs_of, trials)) / search.epochs_total)
        if search.minutes:
            found.append(self.seconds / 60 / search.minutes)
        return min(1.0, max(found))

    def __str__(self) -> str:
        """How much of it is used up."""
        search, trials = self.search, self.study.get_trials(deepcopy=False)
        ended = sum(trial.state in DONE for trial in trials)
        words = [f"{ended}/{search.trials}" if search.trials else f"{ended}"]
        if search.epochs_total:
            words.append(f"{sum(map(epochs_of, trials))}/{search.epochs_total} epochs")
        if search.minutes:
            words.append(f"{self.seconds / 60:.1f}/{search.minutes:g} min")
        return ", ".join(words)


def _asked(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.state != TrialState.WAITING for trial in trials)


def stale(trials: Sequence[FrozenTrial]) -> bool:
    """Whether the best has stood for the last half of the trials that ended, and for `STALE`.

    More trials of the same search then have, for as many again, at most the chance of a third to
    find a better one: where all trials are alike, the best of 3n is among the last n with
    probability 1/3, and those that are still drawn are better than alike only near the best.
    """
    ended = [trial for trial in trials if trial.state in DONE]
    values = [best_value(trial) for trial in ended]
    if not values:
        return False
    since = len(values) - 1 - values.index(max(values))
    return since >= max(STALE, len(values) / 2)
