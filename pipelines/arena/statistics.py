"""An arena in numbers: standings, ranks over many data sets, and who is worth the cost.

Flows in: the parsed `arena.json`. Flows out: frozen rows, best first. Nothing is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from pipelines.arena.cells import Block, Cell, read_cells
from pipelines.arena.pairs import Answers, paired
from trainables.statistics.bootstrap import Array, Difference, sign

KEYS = ("all", "harmonic", "base")  # an adapter is ranked by the first of them that it has


@dataclass(frozen=True)
class Pair:
    """A row against the next one: the difference of their accuracy `key` over shared `seeds`, for
    other images of these classes (`gap`) and for other classes."""

    other: str
    key: str
    seeds: list[int]
    gap: Difference
    classes: Difference | None = None  # not known of arenas that hold no labels

    @property
    def leads(self) -> bool:
        """Whether the row is shown to lead."""
        return sign(self.gap.low, self.gap.high, self.gap.p) > 0


@dataclass(frozen=True)
class Standing:
    """An adapter in one block: accuracies are means over `seeds`, spreads sample deviations.

    `key` names the accuracy by which the row is ranked, None where no seed is done. `spread` lacks
    a key where fewer than two seeds are done.
    """

    adapter: str
    key: str | None
    mean: Mapping[str, float]
    spread: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    seeds: list[int]
    failures: list[tuple[int, str]]  # (seed, reason)
    pending: list[int]
    seconds: float | None
    parameters: float | None
    next: Pair | None = None
    ece: tuple[float, float] | None = None  # of all or the base classes, before and after; means

    @property
    def accuracy(self) -> float | None:
        return None if self.key is None else self.mean[self.key]


@dataclass(frozen=True)
class Table:
    """The standings of one block; `key` is the accuracy by which its best rows are ranked."""

    block: Block
    rows: list[Standing]

    @property
    def key(self) -> str | None:
        return next((row.key for row in self.rows if row.key), None)

    @property
    def ranked(self) -> list[Standing]:
        """The rows that compete. A row that has only `base` does not compete with rows that have
        `harmonic`."""
        return [row for row in self.rows if row.key and row.key == self.key]


class Costed(Protocol):
    """Anything with an accuracy and two costs."""

    @property
    def adapter(self) -> str: ...
    @property
    def accuracy(self) -> float | None: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def parameters(self) -> float | None: ...


def standings(arena: Mapping[str, Any]) -> list[Table]:
    """A table for each block: a row an adapter, best first, each compared with the next.

    Where some rows have `harmonic`, rows that have only `base` follow them: the two numbers do not
    compare. Rows without any number come last.
    """
    return [
        Table(block, _compared(_rows(arena, cells), cells))
        for block, cells in read_cells(arena).items()
    ]


def _rows(arena: Mapping[str, Any], cells: list[Cell]) -> list[Standing]:
    rows = [
        _standing(adapter, [c for c in cells if c.adapter == adapter])
        for adapter in arena["adapters"]
        if any(c.adapter == adapter for c in cells)
    ]
    return sorted(rows, key=lambda r: (_place(r.key), -(r.accuracy or 0.0)))


def _place(key: str | None) -> int:
    return len(KEYS) if key is None else KEYS.index(key)


def _standing(adapter: str, cells: list[Cell]) -> Standing:
    done = sorted((c for c in cells if c.state == "done"), key=lambda c: c.seed)
    values = {
        key: np.array([c.accuracy[key] for c in done])
        for key in (done[0].accuracy if done else {})
        if all(key in c.accuracy for c in done)
    }
    return Standing(
        adapter=adapter,
        key=next((key for key in KEYS if key in values), None),
        mean={key: float(v.mean()) for key, v in values.items()},
        spread={key: float(v.std(ddof=1)) for key, v in values.items() if len(v) > 1},
        per_class=_per_class(done),
        seeds=[c.seed for c in done],
        failures=sorted((c.seed, c.reason) for c in cells if c.state == "failed"),
        pending=sorted(c.seed for c in cells if c.state == "pending"),
        seconds=_mean([c.seconds for c in done]),
        parameters=_mean([c.parameters for c in done]),
        ece=_ece(done),
    )


def _ece(done: Sequence[Cell]) -> tuple[float, float] | None:
    """The mean calibration error over runs, of the classes that they were trained on; None where
    one is not known."""
    known = [cell.ece[key] for cell in done for key in ("all", "base") if key in cell.ece]
    if not known or len(known) < len(done):
        return None
    before, after = zip(*known, strict=True)
    return float(np.mean(before)), float(np.mean(after))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _per_class(done: list[Cell]) -> dict[str, dict[str, float]]:
    """The mean over seeds of each class's accuracy, by accuracy key."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in done:
        for key, classes in cell.per_class.items():
            for name, value in classes.items():
                found.setdefault(key, {}).setdefault(name, []).append(value)
    return {
        key: {name: float(np.mean(values)) for name, values in classes.items()}
        for key, classes in found.items()
    }


def _compared(rows: list[Standing], cells: list[Cell]) -> list[Standing]:
    by_adapter: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        if cell.state == "done":
            by_adapter.setdefault(cell.adapter, {})[cell.seed] = cell
    following = [*rows[1:], None]
    return [
        replace(row, next=_pair(row, other, by_adapter)) if other else row
        for row, other in zip(rows, following, strict=True)
    ]


def _pair(row: Standing, other: Standing, cells: Mapping[str, Mapping[int, Cell]]) -> Pair | None:
    """The paired comparison of two rows, where both have answers to the same images."""
    seeds = sorted(set(row.seeds) & set(other.seeds))
    sides = [[cells[each.adapter][seed] for seed in seeds] for each in (row, other)]
    for key in KEYS:
        parts = ("base", "new") if key == "harmonic" else (key,)
        named = all(part in each.mean for each in (row, other) for part in parts)
        every = [cell for side in sides for cell in side]
        if not (seeds and named and all(p in cell.correct for cell in every for p in parts)):
            continue
        over_images, over_classes = (
            paired(*([_answers(cell, parts, by) for cell in side] for side in sides))
            if all(p in getattr(cell, by) for cell in every for p in parts)
            else None
            for by in ("images", "labels")
        )
        assert over_images is not None
        return Pair(other.adapter, key, seeds, over_images, over_classes)
    return None


def _answers(cell: Cell, parts: Sequence[str], by: str) -> list[Answers]:
    """A run's answers to each part; `by` names the units that are resampled."""
    return [
        Answers(_numbers(cell.correct[part]), np.array(getattr(cell, by)[part])) for part in parts
    ]


def _numbers(text: str) -> Array:
    return np.frombuffer(text.encode(), np.uint8).astype(np.float64) - ord("0")


def pareto(rows: Sequence[Costed]) -> dict[str, list[str]]:
    """For each cost the adapters that no other beats: at least as accurate for at most the cost,
    and better in one of the two."""

    def front(cost: str) -> list[str]:
        known = [
            (row.adapter, row.accuracy, price)
            for row in rows
            if row.accuracy is not None and (price := getattr(row, cost)) is not None
        ]
        return [
            name
            for name, accuracy, price in known
            if not any(
                a >= accuracy and p <= price and (a > accuracy or p < price) for _, a, p in known
            )
        ]

    return {cost: front(cost) for cost in ("seconds", "parameters")}
