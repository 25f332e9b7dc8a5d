"""What an arena shows, in numbers: standings, ranks over many data sets, and who is worth the cost.

Flows in: the parsed `arena.json`. Flows out: frozen rows, best first. Nothing is read or written.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from pipelines.comparing.cells import Block, Cell, read_cells
from trainables.metrics.bootstrap import Array, Bootstrap, Difference, difference

KEYS = ("all", "harmonic", "base")  # an adapter is ranked by the first of them that it has


@dataclass(frozen=True)
class Pair:
    """A row against the next one: the difference of their accuracy `key` over shared `seeds`."""

    other: str
    key: str
    seeds: list[int]
    gap: Difference

    @property
    def shown(self) -> bool:
        """Whether the 95 % interval excludes no difference at all."""
        return self.gap.low > 0 or self.gap.high < 0


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
        """The rows that compete; one that only has `base` beside others' `harmonic` does not."""
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

    Rows that only have `base` beside rows with `harmonic` follow these: the two numbers do not
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
    )


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
    """The paired bootstrap of two rows, where both have answers to the same images."""
    seeds = sorted(set(row.seeds) & set(other.seeds))
    sides = [[cells[each.adapter][seed] for seed in seeds] for each in (row, other)]
    for key in KEYS:
        parts = ("base", "new") if key == "harmonic" else (key,)
        named = all(part in each.mean for each in (row, other) for part in parts)
        if seeds and named and all(p in c.correct for side in sides for c in side for p in parts):
            ours, theirs = (_answers(side, parts) for side in sides)
            return Pair(other.adapter, key, seeds, paired(ours, theirs))
    return None


def _answers(cells: Sequence[Cell], parts: Sequence[str]) -> list[list[Array]]:
    """Each run's answers (N,) to the images of each part; one part alone is averaged over runs."""
    runs = [[_numbers(cell.correct[part]) for part in parts] for cell in cells]
    return runs if len(parts) > 1 else [[np.mean(runs, axis=0)[0]]]


def _numbers(text: str) -> Array:
    return np.frombuffer(text.encode(), np.uint8).astype(np.float64) - ord("0")


def paired(ours: Sequence[Sequence[Array]], theirs: Sequence[Sequence[Array]]) -> Difference:
    """The difference of two accuracies, each a mean over its runs, over resampled images.

    A run has one array of answers (N,); or two, base and new, of which the harmonic mean is
    compared and whose images are drawn independently of each other.
    """
    sides = []
    for runs in (ours, theirs):
        value = np.mean([_harmonic(*(part.mean() for part in parts)) for parts in runs])
        drawn = np.mean([_harmonic(*map(_resampled, parts, (0, 1))) for parts in runs], axis=0)
        sides.append((float(value), drawn))
    (value, resamples), (other, others) = sides
    return difference(value - other, resamples, others)


def _resampled(answers: Array, seed: int) -> Array:
    """The mean of `answers` (N,) in each resample, (R,)."""
    images = torch.arange(len(answers))
    return _bootstrap(len(answers), seed).mean(torch.from_numpy(answers), images)


def _harmonic(first: Any, second: Any = None) -> Any:
    """The harmonic mean, 0 where both are 0; of one number, that number."""
    if second is None:
        return first
    return 2 * first * second / np.maximum(first + second, np.finfo(np.float64).tiny)


@functools.lru_cache(maxsize=4)
def _bootstrap(images: int, seed: int) -> Bootstrap:
    """Kept for the pairs of a table, which must see the same resamples."""
    return Bootstrap(images, seed=seed)


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
