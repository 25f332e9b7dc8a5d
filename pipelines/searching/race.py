"""Which adapter the next trial is of: the budget moves to those that may still win.

A rule of its own, beside the one that draws an adapter's values, after the rising bandits of Li et
al. 2020 (arXiv:2012.04371). What an adapter reached with what was spent on it is a curve that rises
ever more slowly, so what it gained over the last half of its epochs bounds what the epochs left can
bring. Every adapter gets its starting points and `LEAST` trials that are allowed to finish; then
those whose bound lies below what the leader has reached are passed over, and of the others the one
on which the least was spent comes next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.searching.budget import Budget, epochs_of
from pipelines.searching.ledger import Ledger
from pipelines.searching.study import Search, adapter_of

LEAST = 2  # trials of an adapter that nothing stops


@dataclass
class Runner:
    """How one adapter stands."""

    name: str
    starts: int  # points that it begins with
    asked: int = 0
    finished: int = 0  # trials that were allowed to finish, and did or failed by themselves
    spent: int = 0  # epochs, those of running trials too
    path: list[tuple[int, float]] = field(default_factory=list)  # epochs spent, the best with them

    def add(self, trial: FrozenTrial, search: Search) -> None:
        self.asked += trial.state != TrialState.WAITING
        self.spent += epochs_of(trial)
        self.finished += trial.state in (TrialState.COMPLETE, TrialState.FAIL)
        if reached := search.standing(trial):
            self.path.append((self.spent, max(self.best, reached[0])))

    def copy(self) -> Runner:
        return dataclasses.replace(self, path=[*self.path])

    @property
    def begins(self) -> bool:
        """Whether a point that it begins with is left."""
        return self.asked < self.starts

    @property
    def best(self) -> float:
        return self.path[-1][1] if self.path else float("-inf")

    def best_at(self, spent: float) -> float:
        """The best that `spent` epochs had brought; the first trial's own at the least."""
        reached = [best for epochs, best in self.path if epochs <= spent]
        return reached[-1] if reached else self.path[0][1]

    def bound(self, left: float) -> float:
        """The most that `left` epochs more can bring, were they as fruitful as its last half."""
        if not self.path or not self.spent:
            return float("inf")
        gained = self.best - self.best_at(self.spent / 2)
        return self.best + gained * left / (self.spent / 2)


@dataclass(frozen=True)
class Turn:
    """Whose turn it is, and on which numbers the others were passed over."""

    name: str
    best: Mapping[str, float]
    bounds: Mapping[str, float]  # of those that were passed over
    out: Sequence[str] = ()  # those that have no point left to try


def turn(runners: Sequence[Runner], left: float, tried: Sequence[str] = ()) -> Turn:
    """The adapter of the next trial, with `left` epochs to spend; `tried`: those that have no point
    left to try, which is not all."""
    best = {one.name: one.best for one in runners if one.path}
    fit = [one for one in runners if one.name not in tried]
    first = [one for one in fit if one.asked < max(one.starts, LEAST)]
    if first:
        return Turn(min(first, key=lambda one: one.asked).name, best, {}, tried)
    leader = max(one.best for one in runners)
    bounds = {one.name: one.bound(left) for one in fit if one.finished >= LEAST}
    out = {name: bound for name, bound in bounds.items() if bound < leader}
    still = [one for one in fit if one.name not in out]
    if not still:  # the leader has no point left: of the others, the one that may come nearest
        name = max(bounds, key=lambda name: bounds[name])
        return Turn(name, best, {one: bounds[one] for one in out if one != name}, tried)
    return Turn(min(still, key=lambda one: one.spent).name, best, out, tried)


class Standings:
    """How the adapters of a search stand."""

    def __init__(self, search: Search, runners: Sequence[Runner] = ()) -> None:
        self.search = search
        begun = runners or [Runner(name, len(search.starts(name))) for name in search.adapters]
        self.runners = {one.name: one for one in begun}

    def add(self, trial: FrozenTrial) -> None:
        if (name := adapter_of(trial)) in self.runners:
            self.runners[name].add(trial, self.search)

    def copy(self) -> Standings:
        return Standings(self.search, [one.copy() for one in self.runners.values()])


class Race:
    """The rule, on the trials of a study."""

    def __init__(self, search: Search, budget: Budget) -> None:
        self.search, self.budget = search, budget
        self.ledger = Ledger(Standings(search))
        self.last: Turn | None = None

    def standings(self, study: optuna.Study) -> list[Runner]:
        return [*self.ledger.of(study.get_trials(deepcopy=False)).runners.values()]

    def next(self, study: optuna.Study) -> str:
        self.last = turn(self.standings(study), self.budget.left(), self.budget.tried.out)
        return self.last.name
