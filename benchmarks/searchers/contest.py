"""Who is held against whom, and what one seed on one cell brings.

A cell is a surface (`eurosat-16-1.coop`: one adapter) or all surfaces of a data set
(`eurosat-16-1`: its adapters beside each other). Budgets are in trials' worth: a trial's epochs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import optuna

from benchmarks.searchers.policies import Cell, Make, Now, Optuna, Random, Ray, Was
from benchmarks.searchers.sheet import ALONE, EACH, METRIC, NOW
from benchmarks.searchers.simulate import Rule, Trained, answers, ceilings, search
from benchmarks.searchers.surfaces import FOLDER, Surface
from pipelines.tune.study.search import Stopping
from trainables.errors import ConfigError, unknown

MARKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LEAST = 10  # configurations of a surface that is searched alone


@dataclass(frozen=True)
class Contender:
    """A policy, the rules by which it answers, by the name of each, and what it may spend."""

    make: Make
    rules: Mapping[str, Rule]
    budgets: tuple[int, ...]  # each a search of its own
    any_time: bool  # it may be asked for its answer at each of `MARKS` before


def contenders(options: Mapping[str, Any] | None = None) -> list[Contender]:
    """All of them. `options`: of `Search`, for cliptune as it is."""
    now = functools.partial(Now, **(options or {}))
    alone = functools.partial(now, portfolio=False)
    return [
        Contender(Random, {"random": "metric"}, (64,), True),
        Contender(Optuna, {"Optuna": "metric"}, (64,), True),
        Contender(Ray, {"Ray: OptunaSearch + ASHA": "metric"}, (64,), True),
        Contender(Was, {"cliptune as it was": "metric"}, (48,), True),
        # It plans with its budget.
        Contender(alone, {ALONE: "choice"}, (16,), False),
        Contender(now, {METRIC: "metric", NOW: "choice"}, (8, 16, 64), False),
    ]


def parse(words: Sequence[str]) -> dict[str, Any]:
    """`sampler=gp grace=3` as options of a search; what is of `Stopping` goes there."""
    stopping = {one.name: one for one in fields(Stopping)}
    found: dict[str, Any] = {}
    stops: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in stopping:
            stops[name] = value if name == "kind" else int(value)
        elif name == "sampler":
            found[name] = value
        else:
            raise ConfigError("`--now`: " + unknown("option", name, {*stopping, "sampler"}))
    return found | ({"stopping": Stopping(**stops)} if stops else {})


@functools.cache
def surface(name: str) -> Surface:
    return Surface.load(FOLDER / f"{name}.parquet")


def cells() -> dict[str, list[str]]:
    """By name, the surfaces of each cell: those of single adapters first."""
    every = sorted(path.stem for path in FOLDER.glob("*.parquet"))
    found = {name: [name] for name in every if len(surface(name).configs) >= LEAST}
    for name in every:
        found.setdefault(name.partition(".")[0], []).append(name)
    return found


def cell(name: str) -> Cell:
    """By adapter, the surfaces of a cell."""
    return {surface(one).about["adapter"]: surface(one) for one in cells_of(name)}


@functools.cache
def cells_of(name: str) -> list[str]:
    return cells()[name]


@dataclass
class Found:
    """What one seed brought on one cell."""

    cell: str
    seed: int
    # By contender and trials' worth: regret on val and on test, in points.
    regrets: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)
    # On several adapters, by contender or adapter alone and trials' worth: what is reached on test.
    reached: dict[str, dict[int, float]] = field(default_factory=dict)
    alone: dict[str, dict[int, float]] = field(default_factory=dict)


def play(
    name: str, seed: int, together: Sequence[int], options: Mapping[str, Any] | None = None
) -> Found:
    """All contenders on one cell."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found, own = Found(name, seed), cell(name)
    if len(own) == 1:
        top = ceilings(own)
        for one in contenders(options):
            for budget in one.budgets:
                marks = [m for m in MARKS if m <= budget] if one.any_time else [budget]
                history = spend(one.make, own, budget, seed)
                for label, rule in one.rules.items():
                    told = found.regrets.setdefault(label, {})
                    for mark, (val, test) in zip(
                        marks, worth(history, own, marks, rule), strict=True
                    ):
                        told[mark] = 100 * (top.val - val), 100 * (top.test - test)
        return found
    for budget in together:
        for one in contenders(options):
            history = spend(one.make, own, budget, seed)
            for label, rule in one.rules.items():
                ((_, test),) = worth(history, own, [budget], rule)
                found.reached.setdefault(label, {})[budget] = 100 * test
            if NOW in one.rules:
                every: list[Trained] = []
                for adapter, part in own.items():
                    history = spend(one.make, {adapter: part}, budget, seed)
                    every += history
                    ((_, test),) = worth(history, {adapter: part}, [budget], one.rules[NOW])
                    found.alone.setdefault(adapter, {})[budget] = 100 * test
                ((_, test),) = worth(every, own, [budget * len(own)], one.rules[NOW])
                found.reached.setdefault(EACH, {})[budget] = 100 * test
    return found


def spend(make: Make, own: Cell, trials: int, seed: int) -> list[Trained]:
    budget = trials * epochs(own)
    return search(make(own, budget, seed), own, budget)


def worth(
    history: Sequence[Trained], own: Cell, marks: Sequence[int], rule: Rule
) -> Iterable[tuple[float, float]]:
    """Val and test of the answers after `marks` trials' worth."""
    for one in answers(history, own, [mark * epochs(own) for mark in marks], rule):
        assert one is not None
        yield one.val, one.test


def epochs(own: Cell) -> int:
    return next(iter(own.values())).about["epochs"]
