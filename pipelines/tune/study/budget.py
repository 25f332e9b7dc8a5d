"""The budget of a search: what it may spend, has spent, and when more would not pay.

Flows in: the study. Flows out: epochs left, for the race between adapters; whether to go on; and
the same in words. What was spent stands in the journal, so a resumed search goes on counting.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.tune.study.finite import Tried
from pipelines.tune.study.search import RECIPE, Search
from pipelines.tune.study.study import DONE, OVER, best_value
from pipelines.tune.study.sums import Ledger

CLOCK = "seconds"  # of the search, in the study's attributes
TICK = 10  # seconds after which the clock is written down, also where no trial reports
STALE = 24  # trials that ended without a better one, at least, before a search ends by itself
LEAST = 2  # trials of an adapter that nothing stops


def epochs_of(trial: FrozenTrial) -> int:
    """How many epochs a trial has reported."""
    return max(trial.intermediate_values, default=0)


def is_recipe(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("origin") == RECIPE


@dataclass
class Spent:
    """The cost of trials, and how many ended since the best one."""

    asked: int = 0
    ended: int = 0
    epochs: int = 0
    bound: int = 0  # epochs that trials which run will take at least: recipes all, others the next
    best: float = float("-inf")
    since: int = 0  # trials that ended after the first to reach `best`

    def add(self, trial: FrozenTrial) -> None:
        self.asked += trial.state != TrialState.WAITING
        self.epochs += epochs_of(trial)
        if trial.state not in DONE:
            whole = trial.user_attrs.get("config", {}).get("epochs", 0)
            rest = max(0, whole - epochs_of(trial))
            self.bound += rest if is_recipe(trial) else min(rest, 1)
            return
        self.ended += 1
        self.since += 1
        if OVER not in trial.user_attrs and best_value(trial) > self.best:
            self.best, self.since = best_value(trial), 0

    def copy(self) -> Spent:
        return dataclasses.replace(self)

    def stale(self, adapters: int) -> bool:
        """Whether the best has stood for the last half of the trials that ended, for `STALE`
        trials, and for `LEAST` of each adapter (with many adapters, a better one may have had no
        trial of its own yet).

        If all trials were alike, the best of 3n would be among the last n with probability 1/3. So
        another n trials would find a better one with at most that chance; new trials are better
        than alike only near the best.
        """
        return self.since >= max(STALE, LEAST * adapters, self.ended / 2)


class Budget:
    """Trials, epochs of all trials together, and minutes; the first to be used up ends the
    search."""

    def __init__(self, search: Search, study: optuna.Study) -> None:
        self.search, self.study = search, study
        self.before = self.noted = float(study.user_attrs.get(CLOCK, 0.0))
        self.started = time.monotonic()
        self.ledger = Ledger(Spent())
        self.points = Ledger(Tried(search))

    @property
    def spent(self) -> Spent:
        return self.ledger.of(self.study.get_trials(deepcopy=False))

    @property
    def tried(self) -> Tried:
        return self.points.of(self.study.get_trials(deepcopy=False))

    @property
    def seconds(self) -> float:
        """Seconds of this driver and of earlier ones."""
        return self.before + time.monotonic() - self.started

    def note(self, tick: float = 0) -> None:
        """Write down how long the search has taken, if `tick` seconds have gone since the last."""
        if self.search.minutes and self.seconds >= self.noted + tick:
            self.noted = self.seconds
            self.study.set_user_attr(CLOCK, self.noted)

    @property
    def late(self) -> bool:
        """Whether no trial may go on."""
        return 0 < 60 * self.search.minutes <= self.seconds

    @property
    def trials(self) -> int:
        """Trials at most: no more than there are points to try. 0: no limit."""
        most, left = self.search.trials, self.tried.left
        if left is None:
            return most
        there = self.spent.asked + left
        return min(most, there) if most else there

    def stops(self, trial: FrozenTrial) -> bool:
        """Whether a trial that reported is to end here, as no epoch is left for it."""
        if self.late:
            return True
        if not self.search.epochs_total or is_recipe(trial):
            return False
        spent = self.spent  # what is reported now stands in it as this trial's next epoch
        return self.search.epochs_total <= spent.epochs + spent.bound

    def over(self) -> bool:
        """Whether no further trial is to be begun."""
        spent = self.spent
        return (
            0 < self.search.trials <= spent.asked
            or 0 < self.search.epochs_total <= spent.epochs + spent.bound
            or self.late
            or (self.search.stops and spent.stale(len(self.search.adapters)))
            or self.tried.left == 0
        )

    def left(self) -> float:
        """Epochs that are left to train, as far as can be told."""
        search, spent = self.search, self.spent
        each = spent.epochs / spent.ended if spent.ended else search.epochs / 3
        found = []
        if trials := self.trials:
            found.append((trials - spent.asked) * each)
        if search.epochs_total:
            found.append(float(search.epochs_total - spent.epochs))
        if search.minutes:
            rate = spent.epochs / max(self.seconds, 1e-9)
            found.append((60 * search.minutes - self.seconds) * rate)
        return max(0.0, min(found, default=float("inf")))

    def share(self) -> float:
        """The share of the budget that is used up, from 0 to 1."""
        search, spent = self.search, self.spent
        found = [0.0]
        if trials := self.trials:
            found.append(spent.ended / trials)
        if search.epochs_total:
            found.append(spent.epochs / search.epochs_total)
        if search.minutes:
            found.append(self.seconds / 60 / search.minutes)
        return min(1.0, max(found))

    def __str__(self) -> str:
        """How much of the budget is used up."""
        search, spent = self.search, self.spent
        trials = self.trials
        words = [f"{spent.ended}/{trials}" if trials else f"{spent.ended}"]
        if search.epochs_total:
            words.append(f"{spent.epochs}/{search.epochs_total} epochs")
        if search.minutes:
            words.append(f"{self.seconds / 60:.1f}/{search.minutes:g} min")
        return ", ".join(words)
