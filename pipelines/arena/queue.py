"""The cells that are left, handed out one by one, and again where the machine failed.

Flows in: cells. Flows out: Tune's trials.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.tune.search import Searcher

from pipelines.arena.plan import Cell
from pipelines.tune.samplers.from_disk import FromDisk


class CellQueue(FromDisk):
    """Hands out cells as Tune's trials. A cell whose worker was lost goes on with another worker,
    from what is on disk. It is given up when it was lost more than `retries` times without getting
    further."""

    retries = 2

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.waiting = list(cells)
        self.live: dict[str, Cell] = {}  # by Tune's name for the trial
        self.losses: Counter[Cell] = Counter()  # in a row

    def suggest(self, trial_id: str) -> Any:
        if self.waiting and not self.stopping:
            self.live[trial_id] = self.waiting.pop(0)
            return {"cell": dataclasses.asdict(self.live[trial_id])}
        # One that is running may lose its worker and come back.
        return None if self.live and not self.stopping else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.losses.pop(self.live[trial_id], None)
        self._heed(result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        cell = self.live.pop(trial_id)
        self._heed(result or {})
        if error:
            self.losses[cell] += 1
            if not self.gave_up(cell):
                self.waiting.append(cell)

    def _heed(self, result: dict[str, Any]) -> None:
        if result.get("state") == "interrupted" and "reason" in result:
            self.pause(result["reason"])

    def gave_up(self, cell: Cell) -> bool:
        return self.losses[cell] > self.retries
