"""The one training loop. It never names an adapter, a metric or a scheduler.

Flows in: a config, a backbone, the features of train and val. Flows out: rows of metrics, and in
the run's folder `config.json`, `metrics.jsonl`, `metrics.csv`, `last/` and `best/`.

A step is a function of (config, step), including the values that change while training. So a run
that was killed and resumed ends with the same bytes as one that never was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from trainables.adapters.registry import build
from trainables.config import TrainConfig, check, in_epoch, to_json, until
from trainables.data.batches import Batch
from trainables.data.transfer import Numbers
from trainables.distributed import ALONE, Worker, start_together
from trainables.errors import CliptuneError
from trainables.features.split import SplitFeatures
from trainables.files import understood, write_json
from trainables.hardware import check_precision
from trainables.models.backbone import Backbone
from trainables.training.ahead import Ahead
from trainables.training.checkpoint import check_beside, load_tensors, read_config, save_checkpoint
from trainables.training.integrity import newest_intact
from trainables.training.measure import Found, examine, pooled
from trainables.training.sampler import batches
from trainables.training.saved import (
    check_same,
    optimizer_tensors,
    read_optimizer,
    read_state,
    write_metrics,
)
from trainables.training.selection import Row, best_of, check_metric
from trainables.training.step import learning_rate, make_optimizer, seed_dropout, train_step


class Diverged(CliptuneError):
    """The loss is no longer a finite number."""


class Interrupted(CliptuneError):
    """Asked to stop in the middle of an epoch; the state is saved."""


def never() -> bool:
    return False


class Run:
    """One adapter's training, advanced an epoch at a time, always resumable.

    `metric`, one of its task's `METRICS`, decides which epoch is best and when patience ends.
    Without `val`, nothing is measured and the last epoch is the best. `folds` are runs without val,
    each with the images that it is not trained on. They are trained beside the run and measured
    with it: their images count as val's do, and nothing is chosen on val alone.

    >>> from tempfile import TemporaryDirectory
    >>> from trainables.adapters.registry import make_config
    >>> config = make_config("projection", {"epochs": 2, "batch_size": 8})
    >>> with TemporaryDirectory() as folder:
    ...     run = Run(config, backbone, pairs, pairs, Path(folder), "val/t2i_r1")
    ...     while not run.finished:
    ...         row = run.advance()
    >>> row["epoch"], row["step"]
    (2, 6)
    """

    def __init__(
        self,
        config: TrainConfig,
        backbone: Backbone,
        train: SplitFeatures,
        val: SplitFeatures | None,
        folder: Path,
        metric: str,
        worker: Worker = ALONE,
        checkpoint_seconds: float = 30.0,
        folds: Sequence[tuple[Run, SplitFeatures]] = (),
    ) -> None:
        check_metric(metric, config.task)
        self.config, self.val, self.folder, self.metric = config, val, folder, metric
        self.worker, self.checkpoint_seconds = worker, checkpoint_seconds
        self.folds = folds
        self.adapter = build(config, backbone, train).to(backbone.device)
        self.trained = {n: p for n, p in self.adapter.named_parameters() if p.requires_grad}
        if self.trained:  # what is only measured may be slow
            check_precision(config.precision, backbone.device, "precision")
            check(config.epochs >= 1, "epochs", f"at least 1 of `{config.name}`", config.epochs)
        self.batches = batches(train, self.adapter, worker)
        self.epochs = config.epochs if self.trained else 0
        self.total = self.epochs * self.batches.steps_per_epoch
        # States of the image tower are made on the device, each in its turn.
        threaded = backbone.device.type == "cuda" and self.adapter.image_block is None
        self.ahead = Ahead(lambda step: self.batches(step, self.total), backbone, threaded)
        self.truncated_captions = self.adapter.truncated(train) if self.trained else 0
        self.step = 0
        self.rows: list[Row] = []
        self.sums: dict[str, float] = {}  # of the current epoch's steps
        self.outstanding: tuple[Numbers, int] | None = None  # the last step's, and which are ours
        self.found: Found | None = None  # on val at this epoch, by worker 0
        self.warnings: list[str] = []
        self.saved = time.monotonic()  # when `last` was written
        if self.trained:
            self.optimizer = make_optimizer(config.optim, self.trained)
        self._resume()
        if worker.world > 1:
            start_together(worker, self.step, list(self.adapter.state_dict().values()))

    # -- where the run stands ---------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.rows)

    @property
    def best(self) -> Row | None:
        if self.val is None:
            return self.rows[-1] if self.rows else None
        return best_of(self.rows, self.metric)

    @property
    def finished(self) -> bool:
        best = self.best
        if best is None:
            return False
        stale = self.epoch - best["epoch"]
        return self.epoch >= self.epochs or 0 < self.config.patience <= stale

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.trained.values())

    # -- one epoch --------------------------------------------------------------------------

    def advance(self, should_stop: Callable[[], bool] = never) -> Row:
        """Train to the end of the current epoch, measure on val, save; the epoch's row of metrics.

        A run that is finished already gives its last row again. Raises `Diverged` where the loss is
        not finite, and `Interrupted`, after saving, where `should_stop` says so.
        """
        if self.finished:
            return self.rows[-1]
        started = time.monotonic()
        self.begin_epoch()
        while self.step < self.epoch_end:
            if should_stop():
                raise self.interrupted()
            self.count(self._train_step())
        self._advance_folds(should_stop)
        return self.end_epoch(time.monotonic() - started)

    def _advance_folds(self, should_stop: Callable[[], bool]) -> None:
        """Train the same epoch of each fold; a fold may have ended it before a kill."""
        for run, _ in self.folds:
            while run.epoch <= self.epoch:
                try:
                    run.advance(should_stop)
                except Interrupted:
                    raise self.interrupted() from None

    @property
    def epoch_end(self) -> int:
        """The step at which the current epoch is over."""
        return min((self.epoch + 1) * self.batches.steps_per_epoch, self.total)

    def begin_epoch(self) -> bool:
        """Set the numbers that change with the epoch; whether the optimizer's changed."""
        self.adapter.train()
        if not (self.config.changes and self.trained):
            return False
        epoch, decay = self.epoch + 1, self.optimizer.param_groups[0]["weight_decay"]
        now = in_epoch(self.config, epoch)
        self.adapter.train_config = until(self.config, epoch)
        self.adapter.objective.follow(now.loss, now.temperature)
        self.optimizer.param_groups[0]["weight_decay"] = now.optim.weight_decay
        return bool(decay != now.optim.weight_decay)

    def interrupted(self) -> Interrupted:
        """Save the run; the error to raise."""
        self._save_last()
        return Interrupted(f"stopped at step {self.step} of {self.total}.")

    def count(self, numbers: Numbers, member: int = 0) -> None:
        """Note a step that was started, and check the numbers of the step before it."""
        self.settle()
        self.outstanding = numbers, member
        self.step += 1
        due = time.monotonic() - self.saved > self.checkpoint_seconds
        # A loss that is not finite is raised in its turn, at which all workers raise it.
        if due and math.isfinite(numbers.row(member)["loss"]):
            self._save_last()

    def settle(self) -> None:
        """Check the numbers of the last step. Raises `Diverged` where its loss is not finite; the
        parameters are then worthless, and nothing was saved since."""
        if self.outstanding is None:
            return
        (numbers, member), self.outstanding = self.outstanding, None
        found = numbers.row(member)
        if not math.isfinite(found["loss"]):
            raise Diverged(f"the loss became {found['loss']} at step {self.step - 1}.")
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def end_epoch(self, train_seconds: float) -> Row:
        """Measure the epoch and save; its row of metrics."""
        started = time.monotonic()
        self.settle()
        if not all(parameter.isfinite().all() for parameter in self.trained.values()):
            raise Diverged(f"a weight is no finite number after step {self.step - 1}.")
        similarity = self.adapter.end_epoch(self.epoch + 1, None if self.folds else self.val)
        row: Row = {"epoch": self.epoch + 1, "step": self.step}
        steps = self.batches.steps_per_epoch
        row |= {f"train/{name}": value / steps for name, value in self.sums.items()}
        self.sums = {}
        if self.trained:
            row["train/truncated_captions"] = self.truncated_captions
            row["train/lr"] = self.lr(self.step - 1)
        row["train/seconds"] = train_seconds
        row |= {f"val/{name}": value for name, value in self._measure(similarity).items()}
        seconds = train_seconds + time.monotonic() - started
        row["seconds"] = seconds + (self.rows[-1]["seconds"] if self.rows else 0)
        self.rows.append(row)
        if self.worker.rank == 0:
            over = self.val is not None or self.finished
            if self.best is row and over:  # what is reported as best is on disk before
                self._save_best(row)
            self._save_last()
            write_metrics(self.folder, self.rows, self.finished)
        return row

    def lr(self, step: int) -> float:
        """The learning rate of step `step`."""
        return learning_rate(self.config, step, self.epochs, self.batches.steps_per_epoch)

    def next_batch(self) -> Batch:
        """The batch of the current step, whose dropout is seeded."""
        device = self.adapter.backbone.device
        seed_dropout(self.config.seed, self.step, self.worker.rank, device)
        return self.ahead(self.step, self.epoch_end)

    def _train_step(self) -> Numbers:
        batch, lr = self.next_batch(), self.lr(self.step)
        return train_step(self.adapter, batch, self.trained, self.optimizer, lr, self.worker)

    def _measure(self, similarity: Tensor | None) -> dict[str, float]:
        """The val metrics, computed by worker 0 and told to the others, so that all decide
        alike."""
        metrics: dict[str, float] = {}
        if self.worker.rank == 0 and self.val is not None:
            found = examine(self.adapter, self.val, similarity)
            if self.folds:
                found = pooled([found, *(examine(run.adapter, own) for run, own in self.folds)])
            metrics, self.found = found.metrics, found
        told: dict[str, float] = self.worker.tell(metrics)
        return told

    # -- disk -------------------------------------------------------------------------------

    def _save_best(self, row: Row) -> None:
        val, calibration = {}, None
        if self.found is not None:
            val = self.found.kept(self.metric.removeprefix("val/"))
            calibration = self.found.calibration()
        save_checkpoint(
            self.folder / "best", self.adapter, {"row": row}, val=val, calibration=calibration
        )

    def _save_last(self) -> None:
        self.settle()
        self.saved = time.monotonic()
        if self.worker.rank:
            return
        tensors = optimizer_tensors(self.optimizer, self.trained) if self.trained else {}
        state = {"step": self.step, "rows": self.rows, "sums": self.sums}
        save_checkpoint(self.folder / "last", self.adapter, state, tensors)

    def _resume(self) -> None:
        last, self.warnings = newest_intact(self.folder / "last")
        if last is None:
            if self.warnings:
                self._check_same(self.folder)
                self.warnings.append("It is trained again from its configuration.")
            if self.worker.rank == 0:
                write_json(self.folder / "config.json", to_json(self.config))
            return
        state = last / "state.json"
        with understood(state):
            self.step, self.rows, self.sums = read_state(state, self.total)
            _ = self.best  # of rows that lack the metric, a `KeyError`
        self._check_same(last)
        check_beside(last, self.adapter)
        load_tensors(last, self.adapter)
        if self.trained:
            read_optimizer(last / "optimizer.safetensors", self.optimizer, self.trained)
        if self.rows and self.worker.rank == 0:  # a kill may have come between the two
            write_metrics(self.folder, self.rows, self.finished)

    def _check_same(self, last: Path) -> None:
        """Raise unless `last` is of this run; what changes after its steps may be another."""
        begun = math.ceil(self.step / self.batches.steps_per_epoch)
        check_same(self.folder, until(read_config(last), begun), until(self.config, begun))
        if self.config.changes and self.worker.rank == 0:
            write_json(self.folder / "config.json", to_json(self.config))
