"""Which trials stop early: one set of rungs for each adapter, kept in the study.

Flows in: results of trials, from this driver and from earlier ones. Flows out: whether a trial goes
on. Adapters learn at different speeds, so a trial is held against trials of its own adapter alone,
at shares of its own schedule.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from pipelines.tune.schedulers.median import Median
from pipelines.tune.study.budget import LEAST, Budget
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import DONE, adapter_of, frozen_trial
from trainables.trials.jobs import Job, members


@dataclass(frozen=True)
class Named:
    """The facts of a trial that the rules look at."""

    trial_id: str


class EarlyStopping(FIFOScheduler):
    """A rule for each adapter and bracket, fed from the study.

    `asha`: asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), in several brackets
    asynchronous Hyperband; `median`: the median stopping rule (Golovin et al. 2017); `none`. A
    trial stands once in each rung, under its number, with its value there, however often it was
    restarted. The first `LEAST` trials of each adapter are never stopped. Trials that train
    together are judged one by one: those that are to stop are named in the result, for the
    searcher.
    """

    def __init__(self, study: optuna.Study, search: Search, budget: Budget) -> None:
        super().__init__()
        self.study, self.search, self.budget = study, search, budget
        self.rules: dict[tuple[str, int], TrialScheduler] = {}
        self.heard: dict[int, int] = {}  # number to the last epoch that was judged
        self.sure: dict[str, set[int]] = {}  # adapter to the numbers of those never stopped
        for trial in study.get_trials(deepcopy=False, states=DONE):
            self._recall(trial)

    def _recall(self, trial: FrozenTrial) -> None:
        for epoch, value in sorted(trial.intermediate_values.items()):
            self._judge(trial, epoch, value)

    def _judge(self, trial: FrozenTrial, epoch: int, value: float) -> bool:
        """Whether the trial may go on."""
        adapter = adapter_of(trial)
        assert adapter is not None
        if epoch <= self.heard.get(trial.number, 0):
            return True
        self.heard[trial.number] = epoch
        one: Any = Named(str(trial.number))
        key = adapter, bracket(trial.number, self.search)
        if key not in self.rules:
            self.rules[key] = make_rule(self.search, key[1])
        rule = self.rules[key]
        rule.on_trial_add(None, one)
        verdict = rule.on_trial_result(None, one, {"epoch": epoch, self.search.metric: value})
        return verdict == self.CONTINUE or trial.number in self._sure(adapter)

    def _sure(self, adapter: str) -> set[int]:
        found = self.sure.setdefault(adapter, set())
        if len(found) < LEAST:
            trials = self.study.get_trials(deepcopy=False)
            own = [trial.number for trial in trials if adapter_of(trial) == adapter]
            found |= set(own[:LEAST])
        return found

    def on_trial_add(self, _: Any, trial: RayTrial) -> None:
        for job in Job(**trial.config).all:
            self._recall(frozen_trial(self.study, job.number))

    def on_trial_result(self, _: Any, __: RayTrial, result: dict[str, Any]) -> str:
        own = members(result)
        for number, one in own.items():
            one["pruned"] = one["state"] == "running" and not self._goes_on(number, one)
        stopped = all(one["state"] != "running" or one["pruned"] for one in own.values())
        return str(self.STOP if stopped else self.CONTINUE)

    def on_trial_complete(self, _: Any, __: RayTrial, result: dict[str, Any]) -> None:
        for number, one in members(result).items():
            self._goes_on(number, one)

    def _goes_on(self, number: int, result: dict[str, Any]) -> bool:
        if "epoch" not in result:
            return True
        trial = frozen_trial(self.study, number)
        may = self._judge(trial, result["epoch"], result[self.search.metric])
        return may and not self.budget.stops(trial) and not self.search.exceeds(result)


def bracket(number: int, search: Search) -> int:
    """The bracket of a trial, the same whenever it is asked for: each bracket gets as many trials
    as a round of Hyperband gives it (Li et al. 2018, arXiv:1603.06560)."""
    brackets = search.stopping.brackets
    if brackets == 1:
        return 0
    shares = [search.stopping.eta**-one for one in range(brackets)]
    place = zlib.crc32(f"{search.seed}/{number}".encode()) / 2**32 * sum(shares)
    for one, share in enumerate(shares):
        place -= share
        if place < 0:
            return one
    return brackets - 1


def make_rule(search: Search, bracket: int) -> TrialScheduler:
    """The rule for the trials of one adapter in one bracket."""
    stopping, epochs = search.stopping, search.epochs
    if stopping.kind == "none":
        return FIFOScheduler()
    if stopping.kind == "median":
        return Median(search.metric, stopping.grace)
    first = min(stopping.grace * stopping.eta**bracket, epochs)
    about: dict[str, Any] = {"time_attr": "epoch", "metric": search.metric, "mode": "max"}
    return ASHAScheduler(**about, max_t=epochs, grace_period=first, reduction_factor=stopping.eta)


def rungs(search: Search) -> list[int]:
    """The epochs at which ASHA decides."""
    if search.stopping.kind != "asha":
        return []
    marks, mark = [], search.stopping.grace
    while mark < search.epochs:
        marks.append(mark)
        mark *= search.stopping.eta
    return [*marks, search.epochs]
