"""Which adapter the next trial is of: the budget moves to those that may still win.

A rule of its own, beside the one that draws an adapter's values: sequential halving between
adapters (Karnin et al. 2013, "Almost optimal exploration in multi-armed bandits"), counted in
epochs. Every adapter gets its starting points and `LEAST` trials that are allowed to finish. The
budget is spent in equal parts: the first on all adapters, each next one on the better half of those
before, the last on one. Which half is better is decided by what they had reached when as much was
spent on each. Of those that are in, the one on which the least was spent comes next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.searching.budget import Budget, epochs_of
from pipelines.searching.ledger import Ledger
from pipelines.searching.study import OVER, Search, adapter_of

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
        # One that fails at once, or goes over a limit, is as dear as one that finishes: else its
        # adapter would come next for ever.
        failed = trial.state == TrialState.FAIL or OVER in trial.user_attrs
        self.spent += search.epochs if failed else max(1, epochs_of(trial))
        self.finished += failed or trial.state == TrialState.COMPLETE
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
        first = [best for _, best in self.path[:1]]
        reached = first + [best for epochs, best in self.path if epochs <= spent]
        return reached[-1] if reached else float("-inf")


@dataclass(frozen=True)
class Cut:
    """Why an adapter is passed over: what it had reached when it and the leader had each spent
    `spent` epochs."""

    spent: float
    best: float
    leader: str
    leads: float


@dataclass(frozen=True)
class Turn:
    """Whose turn it is, and on which numbers the others are passed over."""

    name: str
    cuts: Mapping[str, Cut]
    out: Sequence[str] = ()  # those that have no point left to try


def turn(runners: Sequence[Runner], left: float, tried: Sequence[str] = ()) -> Turn:
    """The adapter of the next trial, with `left` epochs to spend; `tried`: those that have no point
    left to try, which is not all."""
    fit = [one for one in runners if one.name not in tried]
    first = [one for one in fit if one.asked < max(one.starts, LEAST)]
    if first:
        return Turn(min(first, key=lambda one: one.asked).name, {}, tried)
    alive, cuts = halved(runners, left, tried)
    # Where those that are in have no point left: of the others, the best.
    still = [one for one in alive if one in fit] or [max(fit, key=lambda one: one.best)]
    name = min(still, key=lambda one: one.spent).name
    return Turn(name, {own: cut for own, cut in cuts.items() if own != name}, tried)


def halved(
    runners: Sequence[Runner], left: float, tried: Sequence[str]
) -> tuple[list[Runner], dict[str, Cut]]:
    """Those that are in, and why the others are not."""
    sizes = [len(runners)]
    while sizes[-1] > 1:
        sizes.append(math.ceil(sizes[-1] / 2))
    part = (left + sum(one.spent for one in runners)) / len(sizes)
    alive, each = list(runners), 0.0
    cuts: dict[str, Cut] = {}
    for size, smaller in pairwise(sizes):
        each += part / size
        # One that has no point left spends no more: it stands as it is.
        judged = (
            (one.finished >= LEAST and one.spent >= each) or one.name in tried for one in alive
        )
        if not all(judged):
            break
        # Trials end where they end: as much as was spent on each is a little more.
        spent = max(each, min((one.spent for one in alive if one.name not in tried), default=0))
        ranked = sorted(alive, key=lambda one: -one.best_at(spent))
        leader, alive = ranked[0], ranked[:smaller]
        for one in ranked[smaller:]:
            cuts[one.name] = Cut(spent, one.best_at(spent), leader.name, leader.best_at(spent))
    return alive, cuts


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
