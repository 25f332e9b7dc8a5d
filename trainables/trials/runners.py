"""What trains a trial for Tune: this process, or none where nothing can be loaded.

Flows in: a job. Flows out: its results, an epoch at a time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from trainables.distributed import ALONE, Worker
from trainables.trials.crew import Crew
from trainables.trials.jobs import Job
from trainables.trials.memory import give_back
from trainables.trials.workbench import TrialSettings, Workbench


class Runner(Protocol):
    """What trains a trial: in this process, or in a group of Ray Train workers."""

    def start(self, job: Job) -> None: ...

    def advance(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class InProcess:
    """Trials trained by this process: the Tune worker itself, or one worker of a group."""

    def __init__(
        self,
        settings: TrialSettings,
        worker: Worker = ALONE,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.workbench, self.worker = Workbench(settings), worker
        self.should_stop = should_stop or settings.stop_file.exists
        self.job: Job | None = None
        self.crew: Crew | None = None
        # What is loaded stays: were it looked through after each trial, that would take longer than
        # a small trial itself.
        gc.collect()
        gc.freeze()

    def start(self, job: Job) -> None:
        self.close()
        self.job = job

    def advance(self) -> dict[str, Any]:
        """The next epoch of the trial, or of each trial that trains with it."""
        assert self.job is not None
        if self.crew is None:
            self.crew = Crew(self.workbench, self.job, self.worker)
        results = self.crew.advance(self.should_stop)
        if len(self.job.all) == 1:
            return results[self.job.number]
        epochs = [result["epoch"] for result in results.values() if "epoch" in result]
        return {
            "number": self.job.number,
            "members": list(results.values()),
            "epoch": max(epochs, default=0),
            "done": all(result["done"] for result in results.values()),
        }

    def close(self) -> None:
        """Give the trials' memory back; backbone and features stay."""
        self.job = self.crew = None
        give_back()


@dataclass
class Nobody:
    """In the place of a runner that cannot start, for example because the features are gone: each
    trial stays as it is, until the search goes on without that obstacle."""

    reason: str
    job: Job | None = None

    def start(self, job: Job) -> None:
        self.job = job

    def advance(self) -> dict[str, Any]:
        assert self.job is not None
        told = {"state": "interrupted", "reason": self.reason, "done": True}
        each = [told | {"number": one.number} for one in self.job.all]
        return each[0] | {"members": each}

    def close(self) -> None:
        """Holds nothing."""
