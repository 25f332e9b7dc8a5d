"""What a worker loads once and uses for every trial: the frozen backbone, features, draws.

Flows in: the settings that all trials of a study share. Flows out: runs on what is loaded, each
from where its folder says it stands.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainables.adapters.registry import ADAPTERS, BASELINES, make_config
from trainables.config import Task, TrainConfig, replace
from trainables.distributed import ALONE, Worker
from trainables.features.features import backbone_of, open_features
from trainables.features.few_shot import measured, read_draw
from trainables.features.split import SplitFeatures
from trainables.hardware import default_device
from trainables.models.backbone import Backbone
from trainables.training.loop import Run
from trainables.trials.jobs import FOLDS, stop_file
from trainables.trials.memory import claim
from trainables.trials.width import Widths, measure_width


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
    share: float = 1.0  # of a card, a worker
    measures: bool = True  # on val, after each epoch
    folds: int = 0  # over the shots of the draw, measured beside val

    @property
    def widths(self) -> Widths:
        return Widths(self.folder)

    @property
    def stop_file(self) -> Path:
        """While this file exists, trials save and stop at their next step."""
        return stop_file(self.folder)

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"


class Workbench:
    """What a worker process loads once and uses for every trial."""

    def __init__(self, settings: TrialSettings, backbone: Backbone | None = None) -> None:
        """`backbone`: the features' own, if it is loaded already."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        claim(settings.share)
        self.settings = settings
        self.backbone = backbone or backbone_of(settings.features, default_device())
        self.train = open_features(settings.features, "train", self.backbone)
        draw = None if settings.draw is None else read_draw(settings.draw)
        self.folds: list[tuple[SplitFeatures, SplitFeatures]] = []  # to train on, to measure on
        if draw is not None:
            folds = draw.folds(settings.folds) if settings.folds else []
            self.folds = [(one.of(self.train, "train"), one.of(self.train, "val")) for one in folds]
            self.train = draw.of(self.train, "train")
        self.val: SplitFeatures | None = None
        if settings.measures:
            val = open_features(settings.features, "val", self.backbone)
            self.val = measured(val, draw, [read_draw(path) for path in settings.retain])

    def start(self, number: int, values: dict[str, Any], worker: Worker = ALONE) -> Run:
        """Trial `number` from where its folder says it stands, and before it what the search needs
        once: the baseline, and the width to train at."""
        config = config_of(values)
        if number == 0 and worker.rank == 0:  # the baseline that all trials are to beat, on val
            self.baseline(config.task)
        if self.settings.most_fused > 1:
            self._measure_width(config)
        return self.resume(number, values, worker)

    def resume(self, number: int, values: dict[str, Any], worker: Worker = ALONE) -> Run:
        """Trial `number` from where its folder says it stands."""
        return self.run(config_of(values), self.settings.trial_folder(number), worker)

    def baseline(self, task: Task) -> None:
        """The method without training, measured on val, in a folder of its own."""
        settings = {"task": task, "precision": self.backbone.precision}  # frozen, as the store
        config = make_config(BASELINES[task], settings)
        folder = self.settings.folder / config.name
        self.run(config, folder).advance()
        shutil.rmtree(folder / FOLDS, ignore_errors=True)

    def _measure_width(self, config: TrainConfig) -> None:
        """Measure it once a study and adapter, with the adapter's first trial."""
        widths, name = self.settings.widths, config.name
        if "width" in widths.read().get(name, {}):
            return
        most = min(self.settings.most_fused, 32 if self.backbone.device.type == "cuda" else 64)
        with tempfile.TemporaryDirectory(dir=self.settings.folder) as folder:

            def make(width: int) -> list[Run]:
                return [self.run(config, Path(folder, f"{width}-{n}")) for n in range(width)]

            trains = bool(make(1)[0].trained)  # a wrong setting shows here: the trial's own failure
            if not widths.ask(name):
                return
            if trains and ADAPTERS[name].FUSES and config.optim.kind == "adamw":
                measure_width(make, most, partial(widths.note, name))
            else:
                widths.note(name, 1, "its trials train alone.")

    def run(self, config: TrainConfig, folder: Path, worker: Worker = ALONE) -> Run:
        """A run on what is loaded here."""
        metric = self.settings.metric
        without = replace(config, {"patience": 0})  # of no fold's own: all go on as long as the run
        folds = [
            (
                Run(without, self.backbone, train, None, folder / FOLDS / f"{n}", metric, worker),
                held,
            )
            for n, (train, held) in enumerate(self.folds)
        ]
        run = Run(
            *(config, self.backbone, self.train, self.val, folder, metric, worker), folds=folds
        )
        if any(fold.epoch > run.epoch + 1 for fold, _ in folds):  # its last save was damaged
            shutil.rmtree(folder / FOLDS)
            return self.run(config, folder, worker)
        return run


def config_of(values: dict[str, Any]) -> TrainConfig:
    """The config of a trial, from its dotted values."""
    return make_config(str(values["name"]), {k: v for k, v in values.items() if k != "name"})
