"""A training run as a Ray Tune trial. The only module here that imports Ray.

Flows in: an Optuna trial's number and its dotted values. Flows out: one result an epoch, with the
metric that the scheduler and the searcher read. The worker process outlives its trials: backbone
and features are loaded once, in `setup`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import tune

from trainables.adapters.registry import make_config
from trainables.config import TrainConfig
from trainables.errors import CliptuneError, ConfigError
from trainables.features import backbone_of, open_features
from trainables.hardware import default_device
from trainables.loop import ALONE, Diverged, Interrupted, Row, Run, Worker


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a study share."""

    features: Path  # a feature store's folder
    folder: Path  # of the study
    metric: str
    threads: int  # torch's, a worker; 0: torch's own choice

    @property
    def stop_file(self) -> Path:
        """While this file exists, trials save and stop at their next step."""
        return self.folder / "stop"

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"


class Workbench:
    """What a worker process loads once and uses for every trial."""

    def __init__(self, settings: TrialSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings = settings
        self.backbone = backbone_of(settings.features, default_device())
        self.train = open_features(settings.features, "train")
        self.val = open_features(settings.features, "val")

    def start(self, number: int, values: dict[str, Any], worker: Worker = ALONE) -> Run:
        """Trial `number` from where its folder says it stands."""
        values = dict(values)
        config = make_config(str(values.pop("name")), values)
        if number == 0 and worker.rank == 0:  # the baseline that all trials are to beat, on val
            self.run(make_config("zero_shot"), self.settings.folder / "zero_shot").advance()
        return self.run(config, self.settings.trial_folder(number), worker)

    def run(self, config: TrainConfig, folder: Path, worker: Worker = ALONE) -> Run:
        """A run on what is loaded here."""
        metric = self.settings.metric
        return Run(config, self.backbone, self.train, self.val, folder, metric, worker)


def outcome(run: Run, row: Row) -> dict[str, Any]:
    """The result of one epoch, which may have been trained before a restart."""
    rows = run.rows[: int(row["epoch"])]
    best = max(rows, key=lambda one: one[run.metric])
    done = run.finished and row is run.rows[-1]
    return {
        **row,
        "best": best[run.metric],
        "best_epoch": best["epoch"],
        "trainable_parameters": run.trainable_parameters,
        "done": done,
        "state": "finished" if done else "running",
    }


def failure(error: Exception) -> dict[str, Any]:
    """A trial's own failure is a result too: it is never tried again."""
    return {
        "done": True,
        "state": "failed",
        "reason": f"{type(error).__name__}: {' '.join(str(error).split())}",
        # Workers that train together see the same loss and config; all else may befall one alone.
        "common": isinstance(error, Diverged | ConfigError),
    }


def is_own_failure(error: Exception) -> bool:
    """Whether the trial would fail again: divergence, a bad setting, or too little memory."""
    if isinstance(error, CliptuneError | MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error)  # how torch says it on a CPU


@dataclass(frozen=True)
class Job:
    """A trial to train."""

    number: int
    values: dict[str, Any]  # its config, dotted
    reported: int  # epochs that the study knows already


class Runner(Protocol):
    """What trains a trial: in this process, or in a group of Ray Train workers."""

    def start(self, job: Job) -> None: ...

    def advance(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class InProcess:
    """The trial trained by this process: the Tune worker itself, or one worker of a group."""

    def __init__(
        self,
        settings: TrialSettings,
        worker: Worker = ALONE,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self.workbench, self.worker = Workbench(settings), worker
        self.should_stop = should_stop or settings.stop_file.exists
        # What is loaded stays: were it looked through after each trial, that would take longer than
        # a small trial itself.
        gc.collect()
        gc.freeze()
        self.job: Job | None = None
        self.run: Run | None = None
        self.reported = 0

    def start(self, job: Job) -> None:
        self.close()
        self.job, self.reported = job, job.reported

    def advance(self) -> dict[str, Any]:
        try:
            return self._epoch()
        except Interrupted:
            return {"done": True, "state": "interrupted"}
        except (CliptuneError, MemoryError, RuntimeError) as error:
            if not is_own_failure(error):
                raise
            return failure(error)

    def _epoch(self) -> dict[str, Any]:
        """The next epoch that the study does not know: a driver may have been killed after one was
        saved and before it was told."""
        assert self.job is not None
        if self.run is None:
            self.run = self.workbench.start(self.job.number, self.job.values, self.worker)
        run = self.run
        told = self.reported < run.epoch
        row = run.rows[self.reported] if told else run.advance(self.should_stop)
        self.reported = int(row["epoch"])
        return outcome(run, row)

    def close(self) -> None:
        """Give the trial's memory back; backbone and features stay."""
        self.job = self.run = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class AdapterTrial(tune.Trainable):
    """One epoch a step. `make_runner` is called once a worker process, not once a trial."""

    def setup(self, config: dict[str, Any], make_runner: Callable[[], Runner]) -> None:
        self.runner = make_runner()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.runner.start(Job(**new_config))
        return True

    def step(self) -> dict[str, Any]:
        return self.runner.advance()

    def cleanup(self) -> None:
        self.runner.close()
