"""Ask and tell between Ray Tune and the study.

Flows in: Tune's requests for trials, and their results. Flows out: trials with values, and a study
that knows how each ended. Unlike Ray's `OptunaSearch` it loses no facts: trials that ASHA stops are
told PRUNED with all their intermediate values, failures FAIL with their reason, and the value told
is the best.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pipelines.tune.samplers.from_disk import FromDisk
from pipelines.tune.samplers.samplers import LikeWithLike
from pipelines.tune.study.best import Best, write_best
from pipelines.tune.study.budget import Budget
from pipelines.tune.study.journal import NAME
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import ADAPTER, OVER, batch, frozen_trial, storage_of, trial_id
from pipelines.tune.study.sums import Ledger
from trainables.config import Value
from trainables.errors import DataError
from trainables.faults import disk_failure
from trainables.trials.jobs import FOLDS, ask_to_stop, members, pruned_file, stop_file
from trainables.trials.stacked import FREE
from trainables.trials.width import Widths


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Value:
    """One value, by Optuna's public calls."""
    if isinstance(distribution, FloatDistribution):
        low, high = distribution.low, distribution.high
        return trial.suggest_float(name, low, high, step=distribution.step, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        low_int, high_int = distribution.low, distribution.high
        return trial.suggest_int(
            name, low_int, high_int, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def widest(search: Search) -> int:
    """The most trials that may share a shape, so that a search still sees many."""
    return max(1, search.size // 8)


class StudySearcher(FromDisk):
    """Ask and tell between Ray Tune and the study."""

    def __init__(self, study: optuna.Study, search: Search, folder: Path, fuse: int = 1) -> None:
        """`fuse`: how many trials of one shape train together; 0: as many as a worker measured to
        be fastest."""
        super().__init__(metric=search.metric, mode="max")
        self.study, self.search, self.folder, self.fuse = study, search, folder, fuse
        self.budget = Budget(search, study)
        self.sampler = study.sampler = LikeWithLike(search, self.budget)
        self.best = Ledger(Best())
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.unfinished: list[int] = []
        self.waiting: list[int] = []  # until nothing else runs: they had too little memory
        for trial in running:
            self._queue(trial.number)
        # Ray's trial id to Optuna's trials by number: one, or those that train together.
        self.live: dict[str, dict[int, optuna.Trial]] = {}

    def suggest(self, trial_id: str) -> Any:
        if self.stopping:
            return Searcher.FINISHED
        with self._writing(), batch(self.study):
            suggested = self._suggest(trial_id)
        return Searcher.FINISHED if self.stopping else suggested

    def _suggest(self, trial_id: str) -> Any:
        fresh = not self.unfinished
        trial = self._ask() if fresh else self._resumed(self.unfinished.pop(0))
        if trial is None and self.live:  # one that is running may lose its worker and come back
            return None
        if trial is None and self.waiting:
            trial, fresh = self._resumed(self.waiting.pop(0)), False
        if trial is None:
            return Searcher.FINISHED
        if "config" not in trial.user_attrs:
            self._sample(trial)
        trials = [trial, *(self._siblings(trial) if fresh else [])]
        self.live[trial_id] = {one.number: one for one in trials}
        job, *siblings = (self._job(one) for one in trials)
        return job | ({"siblings": siblings} if siblings else {})

    def _job(self, trial: optuna.Trial) -> dict[str, Any]:
        reported = frozen_trial(self.study, trial.number).intermediate_values
        return {
            "number": trial.number,
            "values": trial.user_attrs["config"],
            "reported": max(reported, default=0),
        }

    def _siblings(self, leader: optuna.Trial) -> list[optuna.Trial]:
        """Further trials of the leader's shape, where training them with it pays.

        The fields that fix the shape are the leader's; all others are sampled as for any other
        trial. Starting points come first, and alone. A group is at most an eighth of the search,
        which must see many shapes; a group whose size was asked for on the command line is as large
        as asked for.
        """
        adapter = leader.user_attrs["config"]["name"]
        found = Widths(self.folder).of(adapter, asked=self.fuse)
        width = found if self.fuse else min(widest(self.search), found)
        shape = {
            field: value
            for name, value in leader.params.items()
            if (field := name.removeprefix(f"{adapter}/")) not in FREE and field != ADAPTER
        }
        siblings: list[optuna.Trial] = []
        with self.sampler.of_shape(adapter, shape):
            while (
                len(siblings) + 1 < width
                and not self.sampler.begins(self.study)
                and not self.budget.over()
                and self.sampler.left()
            ):
                trial = self.study.ask()
                self._sample(trial)
                siblings.append(trial)
        return siblings

    def _ask(self) -> optuna.Trial | None:
        return None if self.budget.over() else self.study.ask()

    def _resumed(self, number: int) -> optuna.Trial:
        """A trial that was running when the search ended."""
        return optuna.Trial(self.study, trial_id(self.study, number))

    def _sample(self, trial: optuna.Trial) -> None:
        """Draw the values that are not drawn yet: a driver may have been killed between two
        values."""
        adapters = self.search.adapters
        adapter = adapters[0]
        if len(adapters) > 1:
            adapter = trial.suggest_categorical(ADAPTER, adapters)
        values: dict[str, Value] = {"name": adapter, "task": self.search.task}
        values |= {"epochs": self.search.epochs, "seed": self.search.seed} | self.search.fixed
        for key, distribution in self.search.searched(adapter).items():
            values[key] = suggest(trial, f"{adapter}/{key}", distribution)
        for name, said in self.sampler.said(trial.number).items():
            trial.set_user_attr(name, said)
        trial.set_user_attr("config", values)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        live = self.live.get(trial_id, {})
        running = len(live)
        with self._writing(), batch(self.study):
            self._hear_all(trial_id, result)
            self.budget.note()
        # Each of these says what the journal has already: a kill in between loses nothing.
        if len(live) < running:
            self._write()
        with self._writing():
            for number, own in members(result).items():
                if own.get("pruned") and not self.paused:
                    pruned_file(self.folder, number).touch()
        self._clear(result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error or trial_id not in self.live or not result:
            return  # `Losses` decides, it knows the reason
        with self._writing(), batch(self.study):
            self._hear_all(trial_id, result)
            for number, trial in self.live.pop(trial_id).items():  # what the scheduler stopped
                self._end(trial, members(result)[number], TrialState.PRUNED)
        self._write()
        self._clear(result)

    def _clear(self, result: dict[str, Any]) -> None:
        """Remove the folds of a trial that ended: only trials that go on need them."""
        for number in members(result) if self.search.folds and not self.paused else ():
            if frozen_trial(self.study, number).state.is_finished():
                folds = self.folder / "trials" / f"{number:04d}" / FOLDS
                shutil.rmtree(folds, ignore_errors=True)

    def _write(self) -> None:
        with self._writing():
            write_best(self.study, self.search, self.folder, self.best)

    def _hear_all(self, trial_id: str, result: dict[str, Any]) -> None:
        live = self.live.get(trial_id, {})
        for number, own in members(result).items():
            if number in live:
                self._hear(live, number, own)

    def _hear(self, live: dict[int, optuna.Trial], number: int, result: dict[str, Any]) -> None:
        """Note the result of one trial. Whether it ended is in its state, or in the scheduler's
        word."""
        trial = live[number]
        epoch, state = int(result.get("epoch", 0)), result["state"]
        if epoch and epoch not in frozen_trial(self.study, number).intermediate_values:
            self._report(trial, epoch, result[self.search.metric])
        if state == "running" and not result.get("pruned"):
            return
        del live[number]
        if state == "failed":
            self._fail(trial, result["reason"])
        elif state == "waits":
            self._wait(trial, result["reason"])
        elif state == "interrupted":  # RUNNING in the journal: a resumed search goes on with it
            if "reason" in result:
                self.pause(result["reason"])
        else:
            complete = state == "finished"
            self._end(trial, result, TrialState.COMPLETE if complete else TrialState.PRUNED)

    def pause(self, reason: str) -> None:
        super().pause(reason)
        ask_to_stop(stop_file(self.folder))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A context that pauses the search where the disk is full or gone. Nothing is lost: a
        resumed search finds everything in the journal and the trials' folders."""
        try:
            yield
        except (OSError, DataError) as error:
            if not disk_failure(error):
                raise
            self.pause(disk_failure(error))
        if lost := storage_of(self.study).journal.lost:
            self.pause(f"`{self.folder / NAME}` cannot be written to: {lost}")

    def _wait(self, trial: optuna.Trial, reason: str) -> None:
        """Queue a trial that had too little memory: it is tried once more when nothing else
        runs."""
        if "waited" in trial.user_attrs:
            self._fail(trial, f"too little memory, also with no other trial running: {reason}")
            return
        trial.set_user_attr("waited", reason)
        self._queue(trial.number)

    def _queue(self, number: int) -> None:
        """Queue a trial that was begun, to be handed out again."""
        waited = "waited" in frozen_trial(self.study, number).user_attrs
        (self.waiting if waited else self.unfinished).append(number)

    def _report(self, trial: optuna.Trial, epoch: int, value: float) -> None:
        if self.search.retains:  # Optuna reports for studies of one goal alone, but stores for both
            own = trial_id(self.study, trial.number)
            storage_of(self.study).set_trial_intermediate_value(own, epoch, value)
        else:
            trial.report(value, epoch)

    def _end(self, trial: optuna.Trial, result: dict[str, Any], state: TrialState) -> None:
        if math.isnan(result["best"]):  # a likelihood, of scores that are no numbers
            self._fail(trial, f"`{self.search.metric}` is no number.")
            return
        self._note(trial, result)
        values: list[float] | None = None  # PRUNED takes none
        if state == TrialState.COMPLETE:
            # Where retention is not applicable, the sampler hears that none of it was kept.
            kept = [result.get("best_retained", 0.0)] if self.search.retains else []
            values = [result["best"], *kept]
        self.study.tell(trial, values, state=state)

    def _note(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        notes = {
            "best": result["best"],
            "epochs": result["epoch"],
            "best_epoch": result["best_epoch"],
            "seconds": result["seconds"],
            "trainable_parameters": result["trainable_parameters"],
            "metrics": {k: v for k, v in result.items() if k.startswith("val/")},
        }
        if self.search.retains:
            notes["retained"] = result.get("best_retained")  # None: no such thing
        if "best_likelihood" in result:
            notes["likelihood"] = result["best_likelihood"]
        if "best_calibrated" in result:
            notes["calibrated"] = result["best_calibrated"]
        if self.search.exceeds(result):
            notes[OVER] = True
        for name, value in notes.items():
            trial.set_user_attr(name, value)

    def lost(self, trial_id: str) -> list[int]:
        """The numbers of the trials that a Ray trial was training when it was lost."""
        return list(self.live.get(trial_id, {}))

    def hand_out_again(self, trial_id: str, number: int) -> None:
        """Give a trial that lost its worker to the next one that is free; alone."""
        if self._take(trial_id, number) is not None:
            self._queue(number)

    def fail(self, trial_id: str, number: int, reason: str) -> None:
        trial = self._take(trial_id, number)
        if trial is not None:
            self._fail(trial, reason)

    def _take(self, trial_id: str, number: int) -> optuna.Trial | None:
        live = self.live.get(trial_id, {})
        trial = live.pop(number, None)
        if not live:
            self.live.pop(trial_id, None)
        return trial

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)
