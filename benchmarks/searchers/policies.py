"""Searchers that are held against each other: what each asks to be trained, and what it hears.

Flows in: the surfaces of one adapter or of several (a cell), a budget in epochs, a seed. Flows out:
configurations, one after the other, and after each epoch whether its trial may go on. What a
searcher is told is val alone. One trial runs at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.searchers.portfolio import data_of, of_other_data
from benchmarks.searchers.surfaces import Surface
from pipelines.tune.samplers.searcher import StudySearcher, suggest
from pipelines.tune.schedulers.asha import EarlyStopping, Named
from pipelines.tune.study.journal import STUDY, Journal, Storage
from pipelines.tune.study.search import RECIPE, Search, Start, Stopping, doubt_of, usual_grace
from pipelines.tune.study.study import ADAPTER
from trainables.config import Value

Cell: TypeAlias = Mapping[str, Surface]  # by adapter; all of one data set
Asked: TypeAlias = tuple[str, Mapping[str, Value]]  # an adapter, and its searched fields


@dataclass(frozen=True)
class Heard:
    """What one epoch of the trial that was asked for last reached on val."""

    epoch: int
    last: bool  # the trial is trained to its end
    values: Mapping[str, float]  # "val/..." of this epoch
    best: Mapping[str, float]  # of the epoch that is best so far, under the same names
    best_epoch: int


class Policy(Protocol):
    """A searcher. What it was told of a trial it keeps by itself."""

    def ask(self) -> Asked | None:
        """The next trial; None: it ends by itself."""

    def hear(self, told: Heard) -> bool:
        """Whether the trial may go on; not asked of one that is at its end."""


Make: TypeAlias = Callable[[Cell, int, int], Policy]  # of a cell, epochs in all, a seed


def about(cell: Cell) -> tuple[str, int]:
    """The metric, and how many epochs a trial has."""
    surface = next(iter(cell.values()))
    return surface.about["metric"], surface.about["epochs"]


class OneStudy:
    """All adapters in one study, `adapter` beside the fields, as one would write it by hand."""

    def __init__(self, cell: Cell, sampler: optuna.samplers.BaseSampler | None) -> None:
        self.cell = cell
        self.metric, self.epochs = about(cell)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)

    def ask(self) -> Asked:
        self.trial = self.study.ask()
        return values_of(self.trial, self.cell)


class Random(OneStudy):
    """Uniformly from the space, each trial to its end."""

    def __init__(self, cell: Cell, budget: int, seed: int) -> None:
        del budget
        super().__init__(cell, optuna.samplers.RandomSampler(seed=seed))

    def hear(self, told: Heard) -> bool:
        del told
        return True


class Optuna(OneStudy):
    """Optuna's defaults: TPE, each trial to its end, told its best epoch."""

    def __init__(self, cell: Cell, budget: int, seed: int) -> None:
        del budget
        super().__init__(cell, optuna.samplers.TPESampler(seed=seed))

    def hear(self, told: Heard) -> bool:
        if told.last:
            self.study.tell(self.trial, told.best[self.metric])
        return True


class Was(OneStudy):
    """cliptune as it was: one TPE and one ASHA over all adapters, the published recipes first."""

    def __init__(self, cell: Cell, budget: int, seed: int) -> None:
        super().__init__(cell, None)
        self.seed, self.trials, self.number = seed, budget // self.epochs, -1
        for name, surface in cell.items():
            for recipe in surface.recipes:
                values = {f"{name}/{key}": value for key, value in recipe.items()}
                self.study.enqueue_trial(values | ({ADAPTER: name} if len(cell) > 1 else {}))
        self.asha = ASHAScheduler("epoch", self.metric, "max", self.epochs, 1, 3)

    def ask(self) -> Asked:
        self.number += 1
        with unwarned():
            self.study.sampler = optuna.samplers.TPESampler(
                seed=self.seed * 1_000_003 + self.number,
                n_startup_trials=max(4, self.trials // 4),
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        asked = super().ask()
        self.asha.on_trial_add(None, Named(str(self.trial.number)))
        return asked

    def hear(self, told: Heard) -> bool:
        value = told.values[self.metric]
        self.trial.report(value, told.epoch)
        if told.last:
            self.study.tell(self.trial, told.best[self.metric])
            return True
        result = {"epoch": told.epoch, self.metric: value}
        goes_on = self.asha.on_trial_result(None, Named(str(self.trial.number)), result) != STOP
        if not goes_on:
            self.study.tell(self.trial, state=TrialState.PRUNED)
        return bool(goes_on)


class Ray:
    """Ray Tune's defaults: its `OptunaSearch` with its `ASHAScheduler`, called as Tune does."""

    def __init__(self, cell: Cell, budget: int, seed: int) -> None:
        del budget
        self.cell, self.number = cell, 0
        self.metric, self.epochs = about(cell)
        self.searcher = OptunaSearch(space=self._space, metric=self.metric, mode="max", seed=seed)
        self.asha = ASHAScheduler("epoch", self.metric, "max", max_t=self.epochs)

    def _space(self, trial: optuna.Trial) -> None:
        self.asked = values_of(trial, self.cell)

    def ask(self) -> Asked:
        self.number += 1
        self.searcher.suggest(str(self.number))
        self.asha.on_trial_add(None, Named(str(self.number)))
        return self.asked

    def hear(self, told: Heard) -> bool:
        own = str(self.number)
        result: dict[str, Any] = {"epoch": told.epoch, "training_iteration": told.epoch}
        result[self.metric] = told.values[self.metric]
        stops = self.asha.on_trial_result(None, Named(own), result) == STOP
        if stops or told.last:
            self.searcher.on_trial_complete(own, result)
        else:
            self.searcher.on_trial_result(own, result)
        return not stops


class Now:
    """cliptune as it is: its searcher, its early stopping and its race between adapters, with the
    budget as `--epochs-total`; its portfolio as it would be without this data set. What it searches
    and begins with is what was recorded: spaces and recipes may have changed since. `options` are
    those of `Search`, such as `sampler="gp"`."""

    def __init__(
        self, cell: Cell, budget: int, seed: int, portfolio: bool = True, **options: Any
    ) -> None:
        self.metric, self.epochs = about(cell)
        task = next(iter(cell.values())).about["task"]
        search = Search(
            *(tuple(cell), self.metric, 0, self.epochs, seed, {}, task),
            epochs_total=budget,
            spaces={name: one.space for name, one in cell.items()},
            stopping=Stopping(grace=usual_grace(task, self.epochs)),
            doubt=doubt_of(self.metric, next(iter(cell.values())).about["images"]["val"]),
        )
        hints = {}
        for name, one in cell.items():
            known = [start.values for start in search.starts(name)]
            hints[name] = [Start(own, RECIPE) for own in one.recipes if own not in known]
            hints[name] += of_other_data(task, name, data_of(one)) if portfolio else []
        self.search = replace(search, hints=hints, **options)
        self.study = optuna.create_study(
            study_name=STUDY, storage=Storage(InMemory()), direction="maximize"
        )
        self.searcher = Unwritten(self.study, self.search, Path("nowhere"))
        self.stopping = EarlyStopping(self.study, self.search, self.searcher.budget)
        self.number = -1

    def ask(self) -> Asked | None:
        self.number += 1
        job = self.searcher.suggest(str(self.number))
        if not isinstance(job, dict):
            return None
        return job["values"]["name"], job["values"]

    def hear(self, told: Heard) -> bool:
        own = str(self.number)
        result: dict[str, Any] = {
            "number": self.number,
            "epoch": told.epoch,
            "best": told.best[self.metric],
            "best_epoch": told.best_epoch,
            "state": "finished" if told.last else "running",
            "seconds": float(told.epoch),
            "trainable_parameters": 1,
            "done": told.last,
            **told.values,
        }
        for name, noted in NOTED.items():
            if name in told.best:
                result[noted] = told.best[name]
        stops = self.stopping.on_trial_result(None, RayTrial(own), result) == STOP
        if stops or told.last:
            self.searcher.on_trial_complete(own, result)
        else:
            self.searcher.on_trial_result(own, result)
        return not stops


STOP = EarlyStopping.STOP
NOTED = {"val/log_likelihood": "best_likelihood", "val/calibrated_likelihood": "best_calibrated"}


@dataclass(frozen=True)
class RayTrial:
    """What `EarlyStopping` looks at of one."""

    trial_id: str


class InMemory(Journal):
    """A journal that is not kept: thousands of searches are run for their choices alone."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        self.path, self.waiting, self.lost = Path("nowhere"), None, None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield


class Unwritten(StudySearcher):
    """Without `best.json`."""

    def _write(self) -> None:
        """Nothing."""


def values_of(trial: optuna.Trial, cell: Cell) -> Asked:
    """A trial's adapter and values, by Optuna's public calls."""
    names = list(cell)
    adapter = str(trial.suggest_categorical(ADAPTER, names)) if len(names) > 1 else names[0]
    space = cell[adapter].space
    return adapter, {key: suggest(trial, f"{adapter}/{key}", one) for key, one in space.items()}


@contextmanager
def unwarned() -> Iterator[None]:
    """Without Optuna's words on what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
