"""An adapter's trials as a sampler sees them.

Flows in: a study's trials. Flows out: each adapter's, in the sampler's terms: fields without the
adapter's name in front, and every trial that ended as complete, with its best value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipelines.tune.study.search import POINTS, RECIPE, Search
from pipelines.tune.study.study import adapter_of

SHOWN = 200  # trials at most; the model of any sampler is as good with these, and its cost bounded
TOP = 25  # of them the best: as many as TPE takes for good ones at most

Notes = dict[int, dict[str, Any]]  # what samplers wrote down of trials, by number


@dataclass
class Own:
    """One adapter's trials."""

    numbers: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    points: set[int] = field(default_factory=set)  # of a recipe or a hint: no sampler drew them
    seen: list[FrozenTrial] = field(default_factory=list)  # in the sampler's terms

    def copy(self) -> Own:
        return Own({*self.numbers}, {*self.running}, {*self.points}, [*self.seen])

    def shown(self) -> list[FrozenTrial]:
        """The trials that the sampler sees: the best ones, and of the others every second, fourth,
        ... where they are many."""
        if len(self.seen) <= SHOWN:
            return self.seen
        best = sorted(self.seen, key=lambda one: -sum(one.values or [float("-inf")]))[:TOP]
        step = 1
        while len(self.seen) // step > SHOWN - TOP:
            step *= 2
        kept = {one.number for one in (*best, *self.seen[::-step])}
        return [one for one in self.seen if one.number in kept]


class History:
    """Each adapter's trials."""

    def __init__(self, search: Search, notes: Notes, own: Mapping[str, Own] | None = None) -> None:
        self.search, self.notes = search, notes
        self.own = dict(own or {name: Own() for name in search.adapters})

    def add(self, trial: FrozenTrial) -> None:
        adapter = adapter_of(trial)
        if adapter not in self.own:
            return
        own = self.own[adapter]
        own.numbers.add(trial.number)
        if trial.state == TrialState.RUNNING:
            own.running.add(trial.number)
        if trial.user_attrs.get("origin", RECIPE) in POINTS:  # older ones do not say, and are first
            own.points.add(trial.number)
        if seen := self._seen(trial, adapter):
            own.seen.append(seen)

    def copy(self) -> History:
        own = {name: one.copy() for name, one in self.own.items()}
        return History(self.search, self.notes, own)

    def _seen(self, trial: FrozenTrial, adapter: str) -> FrozenTrial | None:
        """A trial as a sampler is to see it: with its best value, however long it ran. As Optuna
        tells it, a trial that was stopped early would stand behind all that were not."""
        prefix, space = f"{adapter}/", self.search.searched(adapter)
        params = {
            name.removeprefix(prefix): value
            for name, value in trial.params.items()
            if name.removeprefix(prefix) in space
        }
        if params.keys() != space.keys():
            return None  # a driver was killed between two values
        values = self.search.heard(trial)
        if trial.state.is_finished() and not values:
            return None  # it failed
        return FrozenTrial(
            number=1 + trial.number,  # 0 is the one that is asked for
            trial_id=1 + trial.number,
            state=TrialState.COMPLETE if values else TrialState.RUNNING,
            value=None,
            values=values or None,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params=params,
            distributions=space,
            user_attrs={},
            system_attrs=self.notes.get(trial.number, {}),
            intermediate_values={},
        )
