"""What the driver does when a trial of Tune ends: a lost one is tried again, the rest is told.

Flows in: results and exceptions of trials. Flows out: trials handed out again, and a line for each
that ended; and what record keepers are told.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as RayTrial

from pipelines.console import say
from pipelines.records.mirror import Mirror
from pipelines.tune.recording import seen
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.study.best import Best, best_of, shown
from pipelines.tune.study.budget import TICK, Budget
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import frozen_trial
from pipelines.tune.study.sums import Ledger
from trainables.trials.jobs import Job, members


def reason_of(trial: RayTrial) -> str:
    """Why a trial ended, as Tune wrote it down on the driver: the first sentence of the exception,
    or Ray's word on the process."""
    path = trial.error_file  # the copy that `get_error` reads is made later
    text = Path(path).read_text() if path else ""
    _, _, last = text.rpartition("Failure # ")
    lines = [line for line in last.splitlines()[1:] if line.strip()]
    said = list(itertools.takewhile(lambda line: not line[0].isspace(), reversed(lines)))
    return said[-1].strip() if said else "the worker died"


class Losses(Callback):
    """Handles a trial that ended in an exception: its worker or its node died, or there is a bug.

    The trial's checkpoint is on disk, so it is handed out again, `retries` times, before it is told
    FAIL. Tune's own retries are off: Tune gives a trial up at once if the worker dies between two
    trials.
    """

    retries = 2

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher
        self.losses: Counter[int] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        del iteration, trials, info
        reason = reason_of(trial)
        for number in self.searcher.lost(trial.trial_id):
            self.losses[number] += 1
            if self.losses[number] <= self.retries:
                self.searcher.hand_out_again(trial.trial_id, number)
            else:
                text = f"lost {self.losses[number]} times: {reason}"
                self.searcher.fail(trial.trial_id, number, text)


class Progress(Callback):
    """A line for each trial that ends: its value, the best so far, the rate, the ETA."""

    def __init__(self, study: optuna.Study, search: Search, budget: Budget) -> None:
        self.study, self.search, self.budget = study, search, budget
        self.started, self.already = time.monotonic(), budget.spent.ended
        self.best = Ledger(Best())
        self.used = budget.share()  # by former drivers
        self.told: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        """Note the minutes that were spent, even if the driver is killed before a result."""
        del iteration, trials, info
        self.budget.note(TICK)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[RayTrial],
        trial: RayTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        del iteration, trials, info
        for number, own in members(result).items():
            for warning in own.get("warnings", []):
                say(f"trial {number}: {warning}")
        self._lines(trial)

    def on_trial_complete(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        del iteration, trials, info
        self._lines(trial)

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        del iteration, trials, info
        self._lines(trial)

    def _lines(self, trial: RayTrial) -> None:
        for job in Job(**trial.config).all:
            frozen = frozen_trial(self.study, job.number)
            # Else it is running, interrupted, or to be handed out again.
            if frozen.state.is_finished() and job.number not in self.told:
                self.told.add(job.number)
                self._line(frozen)

    def _line(self, frozen: FrozenTrial) -> None:
        ended = self.budget.spent.ended
        spent = time.monotonic() - self.started
        share = self.budget.share()
        left = (1 - share) * spent / max(share - self.used, 1e-9)
        two = self.search.retains
        value = shown(frozen, two) if "best" in frozen.user_attrs else "      "
        top = best_of(self.study, self.best).found.get(None)
        best = f"best {shown(top, two)} (trial {top.number})" if top else "no result yet"
        adapter = frozen.user_attrs["config"]["name"]
        reason = frozen.user_attrs.get("reason", "")
        epochs, state = len(frozen.intermediate_values), frozen.state.name.lower()
        print(
            f"[{self.budget}] trial {frozen.number:>3} {adapter:<12} "
            f"{state:<8} {value} in {epochs:>2} epoch{' ' if epochs == 1 else 's'} | "
            f"{best} | {60 * max(ended - self.already, 1) / spent:.1f} trials/min, "
            f"about {left:.0f} s left {reason}",
            flush=True,
        )


class Recording(Callback):
    """Tells a record keeper of each trial of which something changed. One keeper, one callback."""

    def __init__(self, study: optuna.Study, folder: Path, mirror: Mirror) -> None:
        self.study, self.folder, self.mirror = study, folder, mirror

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _tell(self, trial: RayTrial, **info: Any) -> None:
        del info
        for job in Job(**trial.config).all:
            self.mirror.hear(seen(frozen_trial(self.study, job.number), self.folder))

    on_trial_start = on_trial_result = on_trial_complete = on_trial_error = _tell
