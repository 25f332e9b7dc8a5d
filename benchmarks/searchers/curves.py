"""Learning curves by the engine's own loop.

Flows in: features of train, val and test, and configurations. Flows out: what they
reach on val and test after each epoch.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.config import Task
from trainables.errors import CliptuneError
from trainables.features.split import SplitFeatures
from trainables.metrics.classification import calibrated_likelihood, log_likelihood
from trainables.models.backbone import Backbone
from trainables.training.loop import Run
from trainables.training.measure import measure
from trainables.training.predict import score
from trainables.training.selection import METRICS, Row
from trainables.trials.crew import is_own_failure
from trainables.trials.stacked import StackedRuns
from trainables.trials.workbench import config_of

KEPT: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "log_likelihood", "calibrated_likelihood"),
    "retrieval": ("t2i_r1", "t2i_mrr"),
    "captioning": ("cider_d",),
}


@dataclass(frozen=True)
class Data:
    backbone: Backbone
    train: SplitFeatures
    val: SplitFeatures
    test: SplitFeatures
    task: Task


def measures(run: Run, data: Data) -> dict[str, float]:
    """What decides: on val as the run reports it; on test, whose calibrated likelihood is at val's
    best scale. Nothing where scores are no numbers: the last step may have been one too far."""
    values = measure(run.adapter, data.test)
    if data.val.labels is not None and data.val.classes is not None:
        scores = score(run.adapter, data.val, data.val.classes)
        if not scores.isfinite().all():
            return {}
        _, scale = calibrated_likelihood(scores, data.val.labels)
        assert data.test.labels is not None
        assert data.test.classes is not None
        scores = score(run.adapter, data.test, data.test.classes)
        likelihood = log_likelihood(scores, data.test.labels, scale).mean()
        values["calibrated_likelihood"] = float(likelihood)
    found = {f"val/{name}": run.rows[-1][f"val/{name}"] for name in KEPT[data.task]}
    return found | {f"test/{name}": values[name] for name in KEPT[data.task]}


def train(data: Data, configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves of configurations that train together, and each one's CPU seconds of training and
    val. A curve ends early where there is nothing to train, or where the loss was no number."""
    folder = Path(tempfile.mkdtemp())
    try:
        runs = [make(data, values, folder / str(n)) for n, values in enumerate(configs)]
        fuses = len(runs) > 1 and bool(runs[0].trained) and runs[0].config.optim.kind == "adamw"
        stack = StackedRuns(runs) if fuses else None
        found: list[dict[str, Any]] = [{"parameters": run.trainable_parameters} for run in runs]
        alive, seconds = dict(enumerate(runs)), 0.0
        while alive:
            started = time.process_time()
            told = stack.advance() if stack else [advance(run) for run in alive.values()]
            seconds += (time.process_time() - started) / len(runs)
            for place, row in zip(list(alive), told, strict=True):
                if isinstance(row, Exception):
                    found[place]["failed"] = str(row)
                    del alive[place]
                    continue
                run = alive[place]
                values = measures(run, data)
                for name, value in values.items():
                    found[place].setdefault(name, []).append(value)
                if not values:
                    found[place]["failed"] = f"the scores of epoch {run.epoch} are no numbers."
                    if stack:
                        stack.leave([run])
                if not values or run.finished:
                    del alive[place]
        return [one | {"seconds": seconds} for one in found]
    finally:
        shutil.rmtree(folder)


def advance(run: Run) -> Row | CliptuneError:
    """As a stack tells it."""
    try:
        return run.advance()
    except CliptuneError as error:
        if not is_own_failure(error):
            raise
        return error


def make(data: Data, values: dict[str, Any], folder: Path) -> Run:
    config = config_of(values)
    metric = METRICS[data.task][0]
    return Run(config, data.backbone, data.train, data.val, folder, metric)


def baseline(data: Data) -> dict[str, float]:
    """Zero-shot, with its default words."""
    with tempfile.TemporaryDirectory() as folder:
        run = make(data, {"name": "zero_shot", "task": data.task}, Path(folder))
        run.advance()
        return measures(run, data)
