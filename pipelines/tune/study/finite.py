"""Spaces of few points: how many there are, which were tried, and one that was not.

Flows in: spaces whose fields are choices, whole numbers or steps, and a study's trials. Flows out:
points, by number: 0 for the first value of each field, then the last field's second value, ... A
space with a field of real numbers has no end of points; there only points are compared some of
whose fields have no effect.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Set
from typing import TypeAlias

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from pipelines.tune.study.search import Search
from pipelines.tune.study.study import adapter_of
from search_spaces.common import Space
from search_spaces.registry import IDLE
from trainables.config import Value

Counted: TypeAlias = frozenset[tuple[str, Value]]


def size(space: Space) -> int | None:
    """How many points there are; None: no end of them."""
    sizes = [_size(one) for one in space.values()]
    return None if None in sizes else math.prod(one for one in sizes if one is not None)


def number_of(space: Space, values: Mapping[str, Value]) -> int:
    number = 0
    for name, one in space.items():
        number = number * (_size(one) or 1) + _place(one, values[name])
    return number


def values_of(space: Space, number: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, one in reversed(space.items()):
        number, place = divmod(number, _size(one) or 1)
        found[name] = _value(one, place)
    return {name: found[name] for name in space}


def untried(
    space: Space, shape: Mapping[str, Value], tried: Set[int], seed: str
) -> dict[str, Value] | None:
    """A point of a finite space with the values of `shape` that is not in `tried`: the next one
    from a number drawn at random. None: there is none."""
    own = {name: value for name, value in shape.items() if name in space}
    free = {name: one for name, one in space.items() if name not in own}
    count = size(free) or 1
    first = random.Random(seed).randrange(count)
    for step in range(count):
        values = values_of(free, (first + step) % count) | own
        if number_of(space, values) not in tried:
            return values
    return None


def counted(adapter: str, values: Mapping[str, Value]) -> Counted | None:
    """The values of an adapter that have an effect; None: all have."""
    every = IDLE.get(adapter, {}).items()
    idle = {name for field, by in every for name in by.get(values.get(field), ())}
    return frozenset((name, values[name]) for name in values.keys() - idle) if idle else None


def turned(adapter: str, space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """`values` with another choice of a field that leaves others without effect, so that they have
    one."""
    found = dict(values)
    for field, by in IDLE.get(adapter, {}).items():
        one = space.get(field)
        if found.get(field) in by and isinstance(one, CategoricalDistribution):
            found[field] = next((v for v in one.choices if v not in by), found[field])
    return found


class Tried:
    """For each adapter with a finite space, the points of its trials, however they ended; for other
    adapters, those points some of whose fields have no effect (`alike`)."""

    def __init__(
        self,
        search: Search,
        points: Mapping[str, frozenset[int]] | None = None,
        alike: frozenset[tuple[str, Counted]] = frozenset(),
    ) -> None:
        self.search, self.alike = search, alike
        few = (name for name in search.adapters if size(search.searched(name)) is not None)
        self.points = dict.fromkeys(few, frozenset[int]()) if points is None else dict(points)

    def add(self, trial: FrozenTrial) -> None:
        adapter = adapter_of(trial)
        if adapter not in self.points and adapter not in IDLE:
            return
        space = self.search.searched(adapter)
        values = {name: trial.params.get(f"{adapter}/{name}", ...) for name in space}
        if ... in values.values():  # a driver was killed between two values
            return
        if adapter in self.points:
            self.points[adapter] |= {number_of(space, values)}
        elif own := counted(adapter, values):
            self.alike |= {(adapter, own)}

    def copy(self) -> Tried:
        return Tried(self.search, self.points, self.alike)

    def had(self, adapter: str, values: Mapping[str, Value]) -> bool:
        """Whether a trial was the same."""
        if adapter in self.points:
            return number_of(self.search.searched(adapter), values) in self.points[adapter]
        return (adapter, counted(adapter, values)) in self.alike

    @property
    def left(self) -> int | None:
        """How many points no trial had, over all adapters; None: no end of them."""
        rest = self._rest
        return sum(rest.values()) if rest.keys() == {*self.search.adapters} else None

    @property
    def out(self) -> list[str]:
        """The adapters that have no point left."""
        return [name for name, rest in self._rest.items() if not rest]

    @property
    def _rest(self) -> dict[str, int]:
        sizes = {name: size(self.search.searched(name)) or 0 for name in self.points}
        return {name: sizes[name] - len(points) for name, points in self.points.items()}

    def said(self) -> list[str]:
        """A sentence for each adapter without a point left."""
        return [
            f"`{name}` has no configuration left to try: all {len(self.points[name])} were tried."
            for name in self.out
        ]


def _size(one: BaseDistribution) -> int | None:
    if one.single():
        return 1
    if isinstance(one, CategoricalDistribution):
        return len(one.choices)
    assert isinstance(one, FloatDistribution | IntDistribution)
    return None if one.step is None else 1 + round((one.high - one.low) / one.step)


def _place(one: BaseDistribution, value: Value) -> int:
    if isinstance(one, CategoricalDistribution):
        return one.choices.index(value)
    assert isinstance(one, FloatDistribution | IntDistribution)
    return round((value - one.low) / one.step) if one.step else 0  # type: ignore[operator]


def _value(one: BaseDistribution, place: int) -> Value:
    if isinstance(one, CategoricalDistribution):
        return one.choices[place]
    assert isinstance(one, FloatDistribution | IntDistribution)
    return one.low + place * (one.step or 0)
