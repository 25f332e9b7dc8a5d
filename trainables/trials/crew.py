"""The runs of one job, and the result of each after each epoch.

Flows in: a trial's number and values, and those of trials that train with it. Flows out: a result
for each, an epoch at a time. Its `state` is `running`, `finished`, `failed` (it would fail again),
`interrupted` (it goes on when the search does; `reason` says what keeps all trials from going on),
or `waits` (for memory: it is tried once more when nothing else runs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainables.distributed import Worker
from trainables.errors import CliptuneError, ConfigError
from trainables.faults import disk_failure, is_machines_failure
from trainables.training.loop import Diverged, Interrupted, Run
from trainables.training.measure import CALIBRATED
from trainables.training.selection import LIKELIHOOD, Row, best_of
from trainables.trials.jobs import Job, pruned_file
from trainables.trials.memory import give_back, is_out_of_memory, shortage
from trainables.trials.stacked import StackedRuns
from trainables.trials.workbench import Workbench


def outcome(run: Run, row: Row) -> dict[str, Any]:
    """The result of one epoch, which may have been trained before a restart."""
    rows = run.rows[: int(row["epoch"])]
    best = best_of(rows, run.metric)
    assert best is not None
    done = run.finished and row is run.rows[-1]
    beside = {"best_retained": "val/retained", "best_likelihood": LIKELIHOOD}  # at the best epoch
    beside |= {"best_calibrated": f"val/{CALIBRATED}"}
    kept = {name: best[key] for name, key in beside.items() if key in best}
    return {
        **row,
        **kept,
        "best": best[run.metric],
        "best_epoch": best["epoch"],
        "trainable_parameters": run.trainable_parameters,
        "done": done,
        "state": "finished" if done else "running",
    }


def warned(run: Run | None) -> dict[str, Any]:
    """The warnings with which a run began, told once."""
    if run is None or not run.warnings:
        return {}
    said, run.warnings = run.warnings, []
    return {"warnings": said}


def failure(error: Exception) -> dict[str, Any]:
    """The result of a trial that failed by itself: it is never tried again."""
    return {
        "done": True,
        "state": "failed",
        "reason": f"{type(error).__name__}: {' '.join(str(error).split())}",
        "common": is_common(error),
    }


def is_common(error: Exception) -> bool:
    """Whether an error befalls all workers that train together: they have the same loss and config.
    Any other error may befall one alone."""
    return isinstance(error, Diverged | ConfigError)


def is_own_failure(error: Exception) -> bool:
    """Whether the trial would fail again: divergence, a bad setting, a damaged file."""
    return isinstance(error, CliptuneError) and not is_machines_failure(error)


class Crew:
    """The runs of one job: one alone, or several that are trained as a stack. Where a stack needs
    too much memory, its runs are trained as two stacks one after the other, and so on down to
    single runs."""

    def __init__(self, bench: Workbench, job: Job, worker: Worker) -> None:
        self.bench, self.worker, self.settings = bench, worker, bench.settings
        self.jobs = {one.number: one for one in job.all}
        self.reported = {number: one.reported for number, one in self.jobs.items()}
        self.runs: dict[int, Run] = {}
        self.ended: dict[int, dict[str, Any]] = {}  # by an error, and not told yet
        self.stacks: list[StackedRuns] = []
        self.most = len(self.jobs)  # runs in a stack
        for number in self.jobs:
            self._build(number, bench.start)

    def _build(self, number: int, start: Callable[..., Run]) -> None:
        try:
            self.runs[number] = start(number, self.jobs[number].values, self.worker)
        except Exception as error:
            self._end(number, error)

    def advance(self, should_stop: Callable[[], bool]) -> dict[int, dict[str, Any]]:
        """A result for each trial that has not ended."""
        for number in [n for n in self.runs if pruned_file(self.settings.folder, n).exists()]:
            del self.runs[number]
        results: dict[int, dict[str, Any]] = {}
        try:
            results = {n: outcome(self.runs[n], row) for n, row in self._rows(should_stop).items()}
        except Interrupted:
            results = {n: {"done": True, "state": "interrupted"} for n in self.runs}
        results |= self.ended
        self.ended = {}
        for number, result in results.items():
            result.update({"number": number}, **warned(self.runs.get(number)))
            self.reported[number] = result.get("epoch", 0)
            if result["done"]:
                self.runs.pop(number, None)
        return results

    def _rows(self, should_stop: Callable[[], bool]) -> dict[int, Row]:
        """The next epoch of each run that the study does not know yet: an epoch may have been saved
        and never told."""
        told: dict[int, Row] = {}
        while ready := [n for n in self.runs if n not in told]:
            saved = [n for n in ready if self.reported[n] < self.runs[n].epoch]
            told |= {n: self.runs[n].rows[self.reported[n]] for n in saved}
            if not saved:
                told |= self._advance(self._team(ready), should_stop)
        return told

    def _team(self, ready: list[int]) -> list[int]:
        """Runs that stand at one step, as many as may train together."""
        first = self.runs[ready[0]]
        most = self.most if first.config.optim.kind == "adamw" else 1  # a stack knows no other
        return [n for n in ready if self.runs[n].step == first.step][:most]

    def _advance(self, team: list[int], should_stop: Callable[[], bool]) -> dict[int, Row]:
        """An epoch of these runs; empty where they ended or are to be tried in smaller teams."""
        full = None
        try:
            found = self._train([self.runs[n] for n in team], should_stop)
            rows = dict(zip(team, found, strict=True))
        except Interrupted:
            raise
        except Exception as error:
            rows = {}
            if len(team) == 1:
                self._end(team[0], error)
            elif is_out_of_memory(error):
                full = shortage(error, self.settings.share)
            else:
                raise
        if full is not None:  # and the error, which held what was computed, is gone
            self._halve(team, full)
        for number, row in rows.items():
            if isinstance(row, CliptuneError):
                self._end(number, row)
        return {n: row for n, row in rows.items() if not isinstance(row, CliptuneError)}

    def _train(
        self, runs: list[Run], should_stop: Callable[[], bool]
    ) -> Sequence[Row | CliptuneError]:
        """An epoch of these runs, as a stack if there are several. A stack that some runs have left
        is used again."""
        theirs = [stack for stack in self.stacks if any(run in stack.runs for run in runs)]
        self.stacks = [stack for stack in self.stacks if stack not in theirs]
        if len(runs) == 1:
            return [runs[0].advance(should_stop)]
        if len(theirs) == 1 and all(run in theirs[0].runs for run in runs):
            theirs[0].leave([run for run in theirs[0].runs if run not in runs])
        else:
            theirs = [StackedRuns(runs)]
        self.stacks += theirs
        return theirs[0].advance(should_stop)

    def _halve(self, team: list[int], full: str) -> None:
        """Use smaller stacks from here on. A failed step may have changed some of its runs and not
        others, so all go on from their last save."""
        self.most = len(team) // 2
        self.settings.widths.note_full(self.runs[team[0]].config.name, self.most, full)
        self.stacks = []
        for number in team:
            del self.runs[number]
        give_back()
        for number in team:
            self._build(number, self.bench.resume)

    def _end(self, number: int, error: Exception) -> None:
        """Note why a run ended. A trial's own failure is a result, and so are a full disk and too
        little memory for the trial alone; any other error ends the worker."""
        self.runs.pop(number, None)
        if full := disk_failure(error):
            paused = {"done": True, "state": "interrupted", "reason": full, "common": False}
            self.ended[number] = paused
        elif is_out_of_memory(error):
            reason = shortage(error, self.settings.share)
            waits = {"done": True, "state": "waits", "reason": reason, "common": False}
            self.ended[number] = waits
        elif is_own_failure(error):
            self.ended[number] = failure(error)
        else:
            raise error
