"""A line for each cell of the arena that ends: what it reached on val, the rate, the ETA."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.tune.callback import Callback
from ray.tune.experiment import Trial as RayTrial

from pipelines.arena.plan import Cell
from pipelines.arena.queue import CellQueue
from pipelines.arena.tuning import fail
from pipelines.console import say
from pipelines.tune.callbacks import reason_of


class Progress(Callback):
    """Counts the cells of one call."""

    def __init__(self, folder: Path, queue: CellQueue) -> None:
        self.folder, self.queue, self.cells = folder, queue, len(queue.waiting)
        self.ended, self.trials, self.started = 0, 0, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def standing(self) -> str:
        """How many cells and trials ended, in words."""
        return f"{self.ended} of {self.cells} cells ended, {self.trials} trials in all."

    def on_trial_result(
        self,
        iteration: int,
        trials: list[RayTrial],
        trial: RayTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        del iteration, trials, info
        state = result["state"]
        self.trials += state == "running"
        for warning in result.get("warnings", []):
            say(f"{Cell(**trial.config['cell']).task}: {warning}")
        if state == "done":
            cost = f"{result['trials']} trials, {result['seconds']:.0f} s"
            self._line(Cell(**trial.config["cell"]), f"val {result['val']:.4f} ({cost})")
        elif state == "failed":
            self._line(Cell(**trial.config["cell"]), f"failed: {result['reason']}")

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        """Told when a worker or its machine failed: the queue has the cell again, or gave it up."""
        del iteration, trials, info
        cell, reason = Cell(**trial.config["cell"]), reason_of(trial)
        if not self.queue.gave_up(cell):
            say(
                f"{cell.task} {cell.adapter} goes on with another worker, this one failed: {reason}"
            )
            return
        reason = f"the machine failed {self.queue.losses[cell]} times: {reason}"
        fail(self.folder, cell, reason)
        self._line(cell, f"failed: {reason}")

    def _line(self, cell: Cell, text: str) -> None:
        self.ended += 1
        spent = time.monotonic() - self.started
        left = (self.cells - self.ended) * spent / self.ended
        say(
            f"[{self.ended}/{self.cells}] {cell.task:<24} {cell.adapter:<13} {text} | "
            f"{60 * self.ended / spent:.1f} cells/min, about {left:.0f} s left"
        )
