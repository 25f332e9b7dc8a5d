"""A training run as a Ray Tune trial. The only module here that imports Ray.

Flows in: an Optuna trial's number and its dotted values. Flows out: one result an epoch, with the
metric that the scheduler and the searcher read. The worker process outlives its trials: backbone
and features are loaded once, in `setup`.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import tune

from trainables.adapters.registry import ADAPTERS, BASELINES, make_config
from trainables.backbone import Backbone
from trainables.config import Task, TrainConfig
from trainables.distributed import ALONE, Worker
from trainables.draws import measured, read_draw
from trainables.errors import CliptuneError, ConfigError
from trainables.faults import is_machines_failure
from trainables.features import backbone_of, open_features
from trainables.files import read_json, write_json
from trainables.fused import Fleet, best_width
from trainables.hardware import default_device
from trainables.loop import LIKELIHOOD, Diverged, Interrupted, Row, Run, best_of

WIDTHS = "fused.json"


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a study share."""

    features: Path  # a feature store's folder
    folder: Path  # of the study
    metric: str
    threads: int  # torch's, a worker; 0: torch's own choice
    most_fused: int = 1  # the widest group that a worker is to time; 1: it times none
    draw: Path | None = None  # what makes the features a task of classification
    retain: tuple[Path, ...] = ()  # draws of classes that training never sees, measured on val

    @property
    def widths_file(self) -> Path:
        """How many trials of each adapter train fastest together, as measured by a worker."""
        return self.folder / WIDTHS

    @property
    def stop_file(self) -> Path:
        """While this file exists, trials save and stop at their next step."""
        return self.folder / "stop"

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"


def pruned_file(study: Path, number: int) -> Path:
    """Tells a worker to train on without one of several trials, which the journal has as pruned."""
    return study / "trials" / f"{number:04d}" / "pruned"


class Workbench:
    """What a worker process loads once and uses for every trial."""

    def __init__(self, settings: TrialSettings, backbone: Backbone | None = None) -> None:
        """`backbone`: the features' own, where it is loaded already."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings = settings
        self.backbone = backbone or backbone_of(settings.features, default_device())
        self.train = open_features(settings.features, "train", self.backbone)
        self.val = open_features(settings.features, "val", self.backbone)
        draw = None if settings.draw is None else read_draw(settings.draw)
        if draw is not None:
            self.train = draw.of(self.train, "train")
        self.val = measured(self.val, draw, [read_draw(path) for path in settings.retain])

    def start(self, number: int, values: dict[str, Any], worker: Worker = ALONE) -> Run:
        """Trial `number` from where its folder says it stands."""
        values = dict(values)
        config = make_config(str(values.pop("name")), values)
        if number == 0 and worker.rank == 0:  # the baseline that all trials are to beat, on val
            self.baseline(config.task)
        if self.settings.most_fused > 1:
            self._measure_width(config)
        return self.run(config, self.settings.trial_folder(number), worker)

    def baseline(self, task: Task) -> None:
        """What needs no training, on val, in a folder of its own."""
        settings = {"task": task, "precision": self.backbone.precision}  # frozen, as the store
        config = make_config(BASELINES[task], settings)
        self.run(config, self.settings.folder / config.name).advance()

    def _measure_width(self, config: TrainConfig) -> None:
        """Once a study and adapter, by its first trial."""
        path = self.settings.widths_file
        widths = read_json(path) if path.exists() else {}
        if config.name in widths:
            return
        fuses = ADAPTERS[config.name].FUSES and config.optim.kind == "adamw"
        most = min(self.settings.most_fused, 32 if self.backbone.device.type == "cuda" else 64)
        with tempfile.TemporaryDirectory(dir=self.settings.folder) as folder:

            def make(width: int) -> list[Run]:
                return [self.run(config, Path(folder, f"{width}-{n}")) for n in range(width)]

            width = best_width(make, most) if fuses and make(1)[0].trained else 1
        write_json(path, widths | {config.name: width})

    def run(self, config: TrainConfig, folder: Path, worker: Worker = ALONE) -> Run:
        """A run on what is loaded here."""
        metric = self.settings.metric
        return Run(config, self.backbone, self.train, self.val, folder, metric, worker)


def outcome(run: Run, row: Row) -> dict[str, Any]:
    """The result of one epoch, which may have been trained before a restart."""
    rows = run.rows[: int(row["epoch"])]
    best = best_of(rows, run.metric)
    assert best is not None
    done = run.finished and row is run.rows[-1]
    beside = {"best_retained": "val/retained", "best_likelihood": LIKELIHOOD}  # at the best epoch
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


def failure(error: Exception) -> dict[str, Any]:
    """A trial's own failure is a result too: it is never tried again."""
    return {
        "done": True,
        "state": "failed",
        "reason": f"{type(error).__name__}: {' '.join(str(error).split())}",
        "common": is_common(error),
    }


def is_common(error: Exception) -> bool:
    """Whether it befalls all workers that train together: they see the same loss and config; all
    else may befall one alone."""
    return isinstance(error, Diverged | ConfigError)


def is_own_failure(error: Exception) -> bool:
    """Whether the trial would fail again: divergence, a bad setting, or too little memory."""
    if is_machines_failure(error):
        return False
    if isinstance(error, CliptuneError | MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error)  # how torch says it on a CPU


@dataclass(frozen=True)
class Job:
    """A trial to train, and those of its shape to train with it."""

    number: int
    values: dict[str, Any]  # its config, dotted
    reported: int  # epochs that the study knows already
    siblings: tuple[dict[str, Any], ...] = ()  # fields of further jobs

    @property
    def all(self) -> list[Job]:
        return [self, *(Job(**one) for one in self.siblings)]


def members(result: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """A result of a Ray trial, by the number of the trial that it is of."""
    return {one["number"]: one for one in result.get("members") or [result]}


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
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Crew:
    """The runs of one job: one alone, or several that are trained as a fleet."""

    def __init__(self, bench: Workbench, job: Job, worker: Worker) -> None:
        self.settings = bench.settings
        self.reported = {one.number: one.reported for one in job.all}
        self.runs: dict[int, Run] = {}
        self.failed: dict[int, dict[str, Any]] = {}  # not told yet
        for one in job.all:
            try:
                self.runs[one.number] = bench.start(one.number, one.values, worker)
            except Exception as error:
                self._failed(one.number, error)
        self.fleet: Fleet | None = None

    def advance(self, should_stop: Callable[[], bool]) -> dict[int, dict[str, Any]]:
        """A result for each trial that has not ended."""
        for number in [n for n in self.runs if pruned_file(self.settings.folder, n).exists()]:
            run = self.runs.pop(number)
            if self.fleet is not None:
                self.fleet.leave([run])
        results: dict[int, dict[str, Any]] = {}
        try:
            results = {n: outcome(self.runs[n], row) for n, row in self._rows(should_stop).items()}
        except Interrupted:
            results = {n: {"done": True, "state": "interrupted"} for n in self.runs}
        results |= self.failed
        self.failed = {}
        for number, result in results.items():
            result["number"] = number
            self.reported[number] = result.get("epoch", 0)
            if result["done"]:
                self.runs.pop(number, None)
        return results

    def _rows(self, should_stop: Callable[[], bool]) -> dict[int, Row]:
        """The next epoch of each run that the study does not know: a driver may have been killed
        after one was saved and before it was told."""
        told = {
            n: r.rows[self.reported[n]] for n, r in self.runs.items() if self.reported[n] < r.epoch
        }
        if told or len(self.runs) < 2:
            for number in self.runs.keys() - told.keys():
                try:
                    told[number] = self.runs[number].advance(should_stop)
                except Interrupted:
                    raise
                except Exception as error:
                    self._failed(number, error)
            return told
        if self.fleet is None:
            self.fleet = Fleet(list(self.runs.values()))
        numbers = list(self.runs)
        found = dict(zip(numbers, self.fleet.advance(should_stop), strict=True))
        for number, row in found.items():
            if isinstance(row, CliptuneError):
                self._failed(number, row)
        return {n: row for n, row in found.items() if not isinstance(row, CliptuneError)}

    def _failed(self, number: int, error: Exception) -> None:
        """A trial's own failure is a result; anything else ends the worker."""
        if not is_own_failure(error):
            raise error
        self.runs.pop(number, None)
        self.failed[number] = failure(error)


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
