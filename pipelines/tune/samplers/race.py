"""Which adapter the next trial is of: the budget moves to those that may still win.

A rule of its own, beside the one that draws an adapter's values: sequential halving between
adapters (Karnin et al. 2013, "Almost optimal exploration in multi-armed bandits"), counted in
epochs. Every adapter gets its starting points and `LEAST` trials that are allowed to finish. The
budget is spent in equal parts: the first on all adapters, each next one on the better half of those
before, the last on one. Which half is better is decided by what they had reached when as much was
spent on each. Of those that are in, the one on which the least was spent comes next.

A cut is final. The journal has it, with its numbers, at each trial that is begun after it, and from
there a resumed search knows it too. An adapter that is out is asked again only where those that are
in have no configuration left to try.

Of two goals, those are better that have a trial on the front, one that no trial of an adapter that
is in beats in both goals, when as much was spent on each; none of them is cut. Beyond that the
metric decides.
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
    """How one adapter stands."""

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
        """Epochs of trials that ended: a cut is final, and what runs has reached nothing yet."""
        return self.spent - self.running

    @property
    def begins(self) -> bool:
        """Whether a point that it begins with is left."""
        return self.asked < self.starts

    def within(self, spent: float = math.inf) -> list[Sequence[float]]:
        """What the trials of so many epochs reached; of the first trial at the least."""
        first = [goals for _, goals in self.path[:1]]
        return first + [goals for epochs, goals in self.path[1:] if epochs <= spent]

    def best(self, spent: float = math.inf) -> float:
        """The best by the metric that `spent` epochs had brought."""
        return max((goals[0] for goals in self.within(spent)), default=-math.inf)


@dataclass(frozen=True)
class Cut:
    """Why an adapter is out: what it had reached when it and the leader had each spent `spent`
    epochs. None: no trial had a result."""

    spent: float
    best: float | None
    leader: str
    leads: float | None


@dataclass(frozen=True)
class Turn:
    """Whose turn it is, and on which numbers others are out."""

    name: str
    cuts: Mapping[str, Cut]
    out: Sequence[str] = ()  # those that have no point left to try


def turn(
    runners: Sequence[Runner],
    left: float,
    tried: Sequence[str] = (),
    before: Mapping[str, Cut] | None = None,
) -> Turn:
    """The adapter of the next trial, with `left` epochs to spend; `tried`: those that have no point
    left to try, which is not all; `before`: those that are out already."""
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
    """Those that are out, and why; those of `before` as they are."""
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
    """Of two goals, those with a trial that no other beats in both; of one, none."""
    found = [(one.name, goals) for one in runners for goals in one.within(spent)]
    pairs = [(goals[0], goals[1]) for _, goals in found if len(goals) > 1]
    return {found[place][0] for place in front(pairs)}


def _known(best: float) -> float | None:
    return best if math.isfinite(best) else None


class Standings:
    """How the adapters of a search stand, and which of them are out."""

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
