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
from trainables.backbone import load_backbone
from trainables.errors import CliptuneError, DataError
from trainables.features import open_features
from trainables.files import read_json
from trainables.hardware import default_device
from trainables.loop import ALONE, Interrupted, Row, Run, Worker


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
        made_with = read_json(settings.features / "manifest.json")["backbone"]
        device = default_device()
        self.backbone = load_backbone(made_with["name"], made_with["revision"], device)
        if self.backbone.fingerprint != made_with["fingerprint"]:
            raise DataError(
                f"`{made_with['name']}` has changed since `{settings.features}` was made with it: "
                "run `cliptune encode` again."
            )
        self.train = open_features(settings.features, "train")
        self.val = open_features(settings.features, "val")

    def start(self, number: int, values: dict[str, Any], worker: Worker = ALONE) -> Run:
        """Trial `number` from where its folder says it stands."""
        values = dict(values)
        config = make_config(str(values.pop("name")), values)
        settings = self.settings
        folder = settings.trial_folder(number)
        if number == 0 and worker.rank == 0:
            self._measure_zero_shot()
        return Run(config, self.backbone, self.train, self.val, folder, settings.metric, worker)

    def _measure_zero_shot(self) -> None:
        """The baseline on val, beside the trials that are to beat it."""
        settings = self.settings
        config, folder = make_config("zero_shot"), settings.folder / "zero_shot"
        Run(config, self.backbone, self.train, self.val, folder, settings.metric).advance()


def outcome(advance: Callable[[], Row], run: Run) -> dict[str, Any]:
    """The result of one epoch. A trial's own failure is a result too: it is never tried again."""
    try:
        row = advance()
    except Interrupted:
        return {"done": True, "state": "interrupted"}
    except (CliptuneError, MemoryError, RuntimeError) as error:
        if not is_own_failure(error):
            raise
        reason = " ".join(str(error).split())
        return {"done": True, "state": "failed", "reason": f"{type(error).__name__}: {reason}"}
    best = run.best or row
    result: dict[str, Any] = dict(row)
    result["best"] = best[run.metric]
    result["best_epoch"] = best["epoch"]
    result["trainable_parameters"] = run.trainable_parameters
    result["done"] = run.finished
    result["state"] = "finished" if run.finished else "running"
    return result


def is_own_failure(error: Exception) -> bool:
    """Whether the trial would fail again: divergence, a bad setting, or too little memory."""
    if isinstance(error, CliptuneError | MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error)  # how torch says it on a CPU


class Runner(Protocol):
    """What trains a trial: in this process, or in a group of Ray Train workers."""

    def start(self, number: int, values: dict[str, Any]) -> None: ...

    def advance(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class InProcess:
    """The trial trained by the Tune worker itself."""

    def __init__(self, settings: TrialSettings) -> None:
        self.workbench = Workbench(settings)
        self.job: tuple[int, dict[str, Any]] | None = None
        self.run: Run | None = None

    def start(self, number: int, values: dict[str, Any]) -> None:
        self.close()
        self.job = (number, values)

    def advance(self) -> dict[str, Any]:
        assert self.job is not None
        stop = self.workbench.settings.stop_file
        if self.run is None:
            try:
                self.run = self.workbench.start(*self.job)
            except CliptuneError as error:
                reason = f"{type(error).__name__}: {error}"
                return {"done": True, "state": "failed", "reason": reason}
        run = self.run
        return outcome(lambda: run.advance(stop.exists), run)

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
        self.runner.start(int(new_config["number"]), dict(new_config["values"]))
        return True

    def step(self) -> dict[str, Any]:
        return self.runner.advance()

    def cleanup(self) -> None:
        self.runner.close()
