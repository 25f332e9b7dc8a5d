"""One cell of the arena: an adapter's own small search, within one worker.

Flows in: a cell's draw and the features of its data set. Flows out: the cell's folder, a study like
any other: journal, trials, best.json; and `cell.json`, written last: what it cost, or why it
failed. Trials follow one another, so the budget is the same for every adapter, however many workers
there are.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from optuna.trial import TrialState
from ray import tune

from pipelines.arena.plan import Cell, Plan, cell_folder, draw_path, store_of
from pipelines.tune.samplers.points import with_hints
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.spaces import on_store
from pipelines.tune.study.choice import write_choice
from pipelines.tune.study.search import Search, about_study, doubt_of
from pipelines.tune.study.study import open_study
from trainables.adapters.registry import make_config
from trainables.data.store import find_store
from trainables.faults import disk_failure, is_machines_failure
from trainables.features.few_shot import read_draw
from trainables.files import read_json, write_hashed, write_json
from trainables.models.backbone import Backbone
from trainables.training.loop import Interrupted
from trainables.trials.crew import failure, is_own_failure, outcome, warned
from trainables.trials.jobs import ask_to_stop, stop_file
from trainables.trials.memory import is_out_of_memory
from trainables.trials.workbench import TrialSettings, Workbench


@dataclass(frozen=True)
class Arena:
    """The settings that all cells share."""

    plan: Plan
    folder: Path
    threads: int
    share: float = 1.0  # of a card, a worker

    @property
    def stop_file(self) -> Path:
        return stop_file(self.folder)


def search_of(plan: Plan, cell: Cell) -> Search:
    """The search of a cell: the published recipe first."""
    recipe = make_config(cell.adapter, {"task": "classification"})
    epochs = min(recipe.epochs, plan.epochs or recipe.epochs)
    adapters, task = (cell.adapter,), recipe.task
    return Search(adapters, plan.metric, plan.trials, epochs, cell.seed, {}, task)


class CellSearch:
    """A cell, advanced a trial at a time, always resumable."""

    def __init__(self, arena: Arena, cell: Cell, backbone: Backbone | None = None) -> None:
        self.arena, self.cell = arena, cell
        self.folder = cell_folder(arena.folder, cell)
        store = find_store(store_of(arena.folder, cell.dataset)).absolute()
        draw = draw_path(arena.folder, cell.task).absolute()
        search = search_of(arena.plan, cell)
        doubt = doubt_of(search.metric, len(read_draw(draw).val))
        spaces = on_store(store, {cell.adapter: search.space(cell.adapter)}, {"task": search.task})
        search = replace(search, doubt=doubt, spaces=spaces)
        self.search = with_hints(search, self.folder, arena.plan.portfolio)
        settings = TrialSettings(
            *(store, self.folder, arena.plan.metric, arena.threads), draw=draw, share=arena.share
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        about = about_study(self.search, [self.search.epochs], store, draw)
        write_hashed(self.folder / "study.json", about)
        self.study = open_study(self.folder)
        self.searcher = StudySearcher(self.study, self.search, self.folder, fuse=1)
        self.bench = Workbench(settings, backbone)
        self.warnings: list[str] = []  # not told yet

    @property
    def spent(self) -> float:
        """Seconds of training and measuring, over all trials that ended."""
        ended = self.study.get_trials(deepcopy=False)
        return sum(float(trial.user_attrs.get("seconds", 0.0)) for trial in ended)

    def advance(self, should_stop: Callable[[], bool]) -> bool:
        """Train the next trial to its end; whether there may be another."""
        if 0 < self.arena.plan.seconds <= self.spent:
            return False
        job: Any = self.searcher.suggest("cell")
        if not isinstance(job, dict):
            return False
        for result in self._train(job["number"], job["values"], should_stop):
            self.searcher.on_trial_result("cell", result | {"number": job["number"]})
        self.searcher.live.clear()
        gc.collect()
        return True

    def _train(
        self, number: int, values: dict[str, Any], should_stop: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """The result of each epoch that the study does not know yet; the last result is done."""
        try:
            run = self.bench.start(number, values)
            self.warnings += warned(run).get("warnings", [])
            done = False
            while not done:
                result = outcome(run, run.advance(should_stop))
                done = result["done"]
                yield result
        except Interrupted:
            raise
        except Exception as error:  # a trial's own failure is a result
            if not (is_own_failure(error) or is_out_of_memory(error)):
                raise
            yield failure(error)

    def close(self) -> dict[str, Any]:
        """Write `cell.json`, and what is in it."""
        # Zero-shot has a cell of its own.
        found = write_choice(self.study, self.search, self.folder, baseline=False)
        trials = self.study.get_trials(deepcopy=False)
        own = read_json(self.folder / "best.json")["per_adapter"] if found else {}
        best = trials[own[self.cell.adapter]["trial"]] if own else None
        ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.FAIL)]
        reasons = [str(t.user_attrs["reason"]) for t in ended if "reason" in t.user_attrs]
        value = {
            **dataclasses.asdict(self.cell),
            "state": "done" if best else "failed",
            "reason": None if best else (reasons or ["no trial ended."])[0],
            "val": best and best.user_attrs["best"],
            "trials": len(ended),
            "failed_trials": len(reasons),
            "seconds": self.spent,
            "trainable_parameters": best and best.user_attrs["trainable_parameters"],
        }
        write_hashed(self.folder / "cell.json", value)
        return value


class CellTrial(tune.Trainable):
    """A cell as a Ray Tune trial, one trial of its search a step. The worker outlives its cells:
    the first one loads the backbone for all."""

    def setup(self, config: dict[str, Any], arena: Arena) -> None:
        self.arena = arena
        self.backbone: Backbone | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cell = Cell(**new_config["cell"])
        self.search: CellSearch | None = None
        return True

    def step(self) -> dict[str, Any]:
        stop_file = self.arena.stop_file
        try:
            if self.search is None:
                self.search = CellSearch(self.arena, self.cell, self.backbone)
                self.backbone = self.search.bench.backbone
            if stop_file.exists():
                return {"done": True, "state": "interrupted"}
            more = self.search.advance(stop_file.exists)
            if self.search.searcher.paused:
                return self._paused(self.search.searcher.paused)
            if more:
                warnings, self.search.warnings = self.search.warnings, []
                return {"done": False, "state": "running", "warnings": warnings}
            return self.search.close() | {"done": True}
        except Interrupted:
            return {"done": True, "state": "interrupted"}
        except (MemoryError, torch.OutOfMemoryError):  # before any trial: others fill the memory
            raise
        except Exception as error:  # the others go on: the cell is shown as failed
            if full := disk_failure(error):
                return self._paused(full)
            if is_machines_failure(error):
                raise  # this worker ends; another one goes on
            return fail(self.arena.folder, self.cell, f"{type(error).__name__}: {error}")

    def _paused(self, reason: str) -> dict[str, Any]:
        """The result where the disk is full or gone: no cell can go on, and none has failed."""
        ask_to_stop(self.arena.stop_file)
        return {"done": True, "state": "interrupted", "reason": reason}


def fail(folder: Path, cell: Cell, reason: str) -> dict[str, Any]:
    """Note on disk that a cell could not be tuned; the next call tries it again."""
    value = {**dataclasses.asdict(cell), "state": "failed", "reason": " ".join(reason.split())}
    write_json(cell_folder(folder, cell) / "failed.json", value)
    return value | {"done": True}
