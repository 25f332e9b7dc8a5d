"""The adapter of the next trial: the budget moves to those that may still win.

Flows in: the study's trials, and the epochs that are left. Flows out: an adapter; and which are
out, with the numbers.

A rule of its own, beside the one that draws an adapter's values: sequential halving between
adapters (Karnin et al. 2013, "Almost optimal exploration in multi-armed bandits"), counted in
epochs. Every adapter gets its starting points and `LEAST` trials that are allowed to finish. The
budget is spent in equal parts: the first on all adapters, each next one on the better half of those
before, the last on one adapter. The better half is that with the higher values when the same number
of epochs had been spent on each. Among the adapters that are in, the one with the fewest epochs
spent comes next.

A cut is final. The journal has it, with its numbers, at each later trial, and a resumed search
reads it from there. An adapter that is out is asked again only where the others have no
configuration left to try.

With two goals, an adapter is never cut if it has a trial on the front, that is a trial that no
other adapter's beats in both goals, when the same number of epochs had been spent on each. Beyond
that the metric decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.tune.study.budget import LEAST, Budget, epochs_of
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import OVER, RACE, adapter_of
from pipelines.tune.study.sums import Ledger
from trainables.metrics.balance import front

Reached = tuple[int, Sequence[float]]  # the adapter's epochs then, the trial's value in each goal


@dataclass
class Runner:
    """The trials of one adapter in the race."""

    name: str
    starts: int  # points that it begins with
    asked: int = 0
    finished: int = 0  # trials that were allowed to finish, and did or failed by themselves
    spent: int = 0  # epochs, those of running trials too
    path: list[Reached] = field(default_factory=list)  # a trial each; none of those over a limit
    running: int = 0  # of the epochs spent, those of trials that have not ended

    def add(self, trial: FrozenTrial, search: Search) -> None:
        self.asked += trial.state != TrialState.WAITING
        # One that fails at once, or goes over a limit, is as dear as one that finishes: else its
        # adapter would come next for ever.
        failed = trial.state == TrialState.FAIL or OVER in trial.user_attrs
        # So is one that waits until there is memory for it.
        dear = failed or (not trial.state.is_finished() and "waited" in trial.user_attrs)
        took = search.epochs if dear else max(1, epochs_of(trial))
        self.spent += took
        self.running += 0 if trial.state.is_finished() else took
        self.finished += failed or trial.state == TrialState.COMPLETE
        if (reached := search.standing(trial)) and not failed:
            self.path.append((self.ended, reached))

    def copy(self) -> Runner:
        return dataclasses.replace(self, path=[*self.path])

    @property
    def ended(self) -> int:
        """Epochs of trials that ended. (A cut is final, and running trials have no result yet.)"""
        return self.spent - self.running

    @property
    def begins(self) -> bool:
        """Whether a point that the adapter begins with is left."""
        return self.asked < self.starts

    def within(self, spent: float = math.inf) -> list[Sequence[float]]:
        """The values of the trials within so many epochs; of the first trial at the least."""
        first = [goals for _, goals in self.path[:1]]
        return first + [goals for epochs, goals in self.path[1:] if epochs <= spent]

    def best(self, spent: float = math.inf) -> float:
        """The best value by the metric within `spent` epochs."""
        return max((goals[0] for goals in self.within(spent)), default=-math.inf)


@dataclass(frozen=True)
class Cut:
    """Why an adapter is out: its value and the leader's when each had spent `spent` epochs. None:
    no trial had a result."""

    spent: float
    best: float | None
    leader: str
    leads: float | None


@dataclass(frozen=True)
class Turn:
    """The adapter whose turn it is, and the numbers on which others are out."""

    name: str
    cuts: Mapping[str, Cut]
    out: Sequence[str] = ()  # those that have no point left to try


def turn(
    runners: Sequence[Runner],
    left: float,
    tried: Sequence[str] = (),
    before: Mapping[str, Cut] | None = None,
) -> Turn:
    """The adapter of the next trial, with `left` epochs to spend. `tried`: the adapters without a
    point left to try, never all of them; `before`: those that are out already."""
    before = before or {}
    fit = [one for one in runners if one.name not in tried]
    first = [one for one in fit if one.asked < max(one.starts, LEAST)]
    if first:
        return Turn(min(first, key=lambda one: one.asked).name, before, tried)
    cuts = halved(runners, left, tried, before)
    # Where those that are in have no point left: of the others, the best.
    still = [one for one in fit if one.name not in cuts] or [max(fit, key=Runner.best)]
    name = min(still, key=lambda one: one.spent).name
    return Turn(name, {own: cut for own, cut in cuts.items() if own != name}, tried)


def halved(
    runners: Sequence[Runner], left: float, tried: Sequence[str], before: Mapping[str, Cut]
) -> dict[str, Cut]:
    """The adapters that are out, and why; those of `before` stay as they are."""
    sizes = [len(runners)]
    while sizes[-1] > 1:
        sizes.append(math.ceil(sizes[-1] / 2))
    part = (left + sum(one.spent for one in runners)) / len(sizes)
    each, cuts = 0.0, dict(before)
    for size, smaller in pairwise(sizes):
        each += part / size
        alive = [one for one in runners if one.name not in cuts]
        if len(alive) <= smaller:
            continue  # decided before
        # One that has no point left, and none that runs, spends no more: it stands as it is.
        judged = (
            (one.finished >= LEAST and one.ended >= each) or (one.name in tried and not one.running)
            for one in alive
        )
        if not all(judged):
            break
        # Trials end where they end: as much as was spent on each is a little more.
        spent = max(each, min((one.ended for one in alive if one.name not in tried), default=0))
        ahead = on_front(alive, spent)
        ranked = sorted(alive, key=lambda one: (one.name not in ahead, -one.best(spent)))
        leads = ranked[0]
        for one in ranked[smaller:]:
            if one.name not in ahead:
                own, most = _known(one.best(spent)), _known(leads.best(spent))
                cuts[one.name] = Cut(spent, own, leads.name, most)
    return cuts


def on_front(runners: Sequence[Runner], spent: float) -> set[str]:
    """With two goals, the adapters with a trial that no other beats in both; with one goal,
    none."""
    found = [(one.name, goals) for one in runners for goals in one.within(spent)]
    pairs = [(goals[0], goals[1]) for _, goals in found if len(goals) > 1]
    return {found[place][0] for place in front(pairs)}


def _known(best: float) -> float | None:
    return best if math.isfinite(best) else None


class Standings:
    """The values of a search's adapters, and which of them are out."""

    def __init__(
        self,
        search: Search,
        runners: Sequence[Runner] = (),
        cuts: Mapping[str, Cut] | None = None,
    ) -> None:
        self.search = search
        begun = runners or [Runner(name, len(search.starts(name))) for name in search.adapters]
        self.runners = {one.name: one for one in begun}
        self.cuts = dict(cuts or {})

    def add(self, trial: FrozenTrial) -> None:
        if (name := adapter_of(trial)) in self.runners:
            self.runners[name].add(trial, self.search)
        for name, cut in trial.user_attrs.get(RACE, {}).get("cuts", {}).items():
            self.cuts.setdefault(name, Cut(**cut))

    def copy(self) -> Standings:
        return Standings(self.search, [one.copy() for one in self.runners.values()], self.cuts)


class Race:
    """The rule, on the trials of a study."""

    def __init__(self, search: Search, budget: Budget) -> None:
        self.search, self.budget = search, budget
        self.ledger = Ledger(Standings(search))
        self.last: Turn | None = None

    def standings(self, study: optuna.Study) -> Standings:
        return self.ledger.of(study.get_trials(deepcopy=False))

    def begins(self, study: optuna.Study) -> bool:
        """Whether the next trial is one that an adapter begins with."""
        return any(one.begins for one in self.standings(study).runners.values())

    def next(self, study: optuna.Study) -> str:
        now = self.standings(study)
        left, tried = self.budget.left(), self.budget.tried.out
        self.last = turn([*now.runners.values()], left, tried, now.cuts)
        return self.last.name
