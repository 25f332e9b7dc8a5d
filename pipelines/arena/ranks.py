"""Which adapter is better over many data sets, and whether chance explains it.

Flows in: the tables of an arena. Flows out: average ranks with their critical difference, and the
average accuracy and cost of each adapter, both over the same complete blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pipelines.arena.cells import PROTOCOLS, Block
from pipelines.arena.statistics import Standing, Table, standings
from trainables.statistics.bootstrap import LEVEL, Array

FEWEST = {"data set": 5, "adapter": 3}  # with fewer, Friedman's test says nothing


@dataclass(frozen=True)
class Ranks:
    """Average ranks over data sets, best (1) first (Demsar, JMLR 7, 2006).

    Shots and protocols of one data set are not independent of each other, so an adapter has one
    rank in each data set: that of its average rank over the complete blocks there. Friedman's test
    asks whether the ranks differ at all; if so, two adapters differ if their average ranks are more
    than Nemenyi's critical difference apart. `groups` are the largest sets of neighbours that are
    not told apart. `problem` says why there is no test; then there are only ranks.
    """

    protocol: str | None  # None: all protocols together
    average: Mapping[str, float]
    blocks: list[Block]  # the complete ones
    datasets: list[str]  # of these
    left_out: list[tuple[Block, str]]
    absent: Mapping[str, str]  # adapters that have a number in no block, and why
    statistic: float | None
    p: float | None
    critical: float | None
    groups: list[list[str]]
    problem: str | None

    @property
    def title(self) -> str:
        return "all protocols together" if self.protocol is None else PROTOCOLS[self.protocol]

    @property
    def differ(self) -> bool:
        """Whether Friedman's test shows any difference."""
        return self.p is not None and self.p < LEVEL

    def apart(self, first: str, second: str) -> bool:
        tested = self.problem is None
        return tested and not any({first, second} <= set(group) for group in self.groups)


@dataclass(frozen=True)
class Point:
    """An adapter's averages over complete blocks."""

    adapter: str
    accuracy: float | None
    seconds: float | None
    parameters: float | None


def ranks(arena: Mapping[str, Any], protocol: str | None = None) -> Ranks:
    """The ranks of an arena's adapters over the blocks of `protocol`, or over all of them."""
    return rank_tables(standings(arena), protocol)


def rank_tables(tables: Sequence[Table], protocol: str | None = None) -> Ranks:
    mine = [t for t in tables if protocol in (None, t.block.protocol)]
    adapters, absent = _present(mine)
    whole, left_out = _complete(mine, adapters)
    values = np.array([[_value(t, a) for a in adapters] for t in whole])  # (N, k)
    datasets = list(dict.fromkeys(t.block.dataset for t in whole))
    ranked = _ranked(values, [datasets.index(t.block.dataset) for t in whole])
    means = ranked.mean(0) if len(whole) else []
    pairs = zip(adapters, map(float, means), strict=False)
    average = dict(sorted(pairs, key=lambda pair: pair[1]))
    problem = _problem(len(datasets), len(adapters))
    statistic, p = (None, None) if problem else _friedman(ranked)
    critical = None if problem else critical_difference(len(adapters), len(datasets))
    differ = p is not None and p < LEVEL
    return Ranks(
        protocol=protocol,
        average=average,
        blocks=[t.block for t in whole],
        datasets=datasets,
        left_out=left_out,
        absent=absent,
        statistic=statistic,
        p=p,
        critical=critical,
        groups=_groups(average, (critical or 0.0) if differ else math.inf) if not problem else [],
        problem=problem,
    )


def points(tables: Sequence[Table], found: Ranks) -> list[Point]:
    """The averages of each ranked adapter over the blocks that `found` is about."""
    whole = [t for t in tables if t.block in found.blocks]
    made = []
    for adapter in found.average:
        rows = [row for t in whole for row in t.ranked if row.adapter == adapter]
        made.append(
            Point(adapter, *(_mean(rows, n) for n in ("accuracy", "seconds", "parameters")))
        )
    return made


def _mean(rows: Sequence[Standing], name: str) -> float | None:
    values = [getattr(row, name) for row in rows]
    return None if any(v is None for v in values) else float(np.mean(values))


def _ranked(values: Array, dataset: Sequence[int]) -> Array:
    """Ranks in each data set (D, k), from accuracies (N, k) in the blocks of these data sets."""
    if not len(values):
        return np.empty((0, 0))
    each = stats.rankdata(-values.round(12), axis=1)
    own = np.array(dataset)
    means = np.stack([each[own == number].mean(0) for number in range(max(dataset) + 1)])
    return stats.rankdata(means.round(12), axis=1)


def critical_difference(adapters: int, datasets: int) -> float:
    """Nemenyi's critical difference: average ranks further apart than this differ, at the 5 %
    level.

    >>> round(critical_difference(5, 10), 2)
    1.93
    """
    q = float(stats.studentized_range.ppf(1 - LEVEL, adapters, math.inf)) / math.sqrt(2)
    return q * math.sqrt(adapters * (adapters + 1) / (6 * datasets))


def _friedman(ranked: Array) -> tuple[float, float]:
    """The statistic and p of Friedman's test, ties included; `ranked` (N, k)."""
    if (ranked == ranked[:, :1]).all():  # all are tied everywhere: 0 / 0 in the formula
        return 0.0, 1.0
    found = stats.friedmanchisquare(*ranked.T)
    return float(found.statistic), float(found.pvalue)


def _problem(datasets: int, adapters: int) -> str | None:
    few = {
        f"{number} {word}{'' if number == 1 else 's'}": str(FEWEST[word])
        for number, word in ((datasets, "data set"), (adapters, "adapter"))
        if number < FEWEST[word]
    }
    needed = f"{' and '.join(few.values())} are needed."
    return f"Ranks are not tested with {' and '.join(few)}; {needed}" if few else None


def _groups(average: Mapping[str, float], critical: float) -> list[list[str]]:
    """The largest runs of neighbours whose ends are not more than `critical` apart."""
    names = list(average)
    runs: list[list[str]] = []
    for i, first in enumerate(names):
        run = [name for name in names[i:] if average[name] - average[first] <= critical]
        if len(run) > 1 and not (runs and set(run) <= set(runs[-1])):
            runs.append(run)
    return runs


def _present(tables: Sequence[Table]) -> tuple[list[str], dict[str, str]]:
    """The adapters with a number somewhere; and the others, with the reason why they have none."""
    rows: dict[str, list[tuple[Table, Standing]]] = {}
    for table in tables:
        for row in table.rows:
            rows.setdefault(row.adapter, []).append((table, row))
    absent = {
        name: _why(*each[0])
        for name, each in rows.items()
        if not any(row in table.ranked for table, row in each)
    }
    return [name for name in rows if name not in absent], absent


def _complete(
    tables: Sequence[Table], adapters: Sequence[str]
) -> tuple[list[Table], list[tuple[Block, str]]]:
    whole, left_out = [], []
    for table in tables:
        rows = {row.adapter: row for row in table.rows}
        missing = [
            f"{name}: {_why(table, rows[name]) if name in rows else 'not run'}"
            for name in adapters
            if name not in {row.adapter for row in table.ranked}
        ]
        if missing or not adapters:
            left_out.append((table.block, "; ".join(missing) or "no run has ended with a number"))
        else:
            whole.append(table)
    return whole, left_out


def _why(table: Table, row: Standing) -> str:
    """Why a row has no number to be ranked by."""
    if row.key:
        return f"no {table.key} accuracy, it cannot name new classes"
    if row.failures:
        return f"failed, {row.failures[0][1]}"
    return "still to run"


def _value(table: Table, adapter: str) -> float:
    return next(row.mean[row.key] for row in table.rows if row.adapter == adapter and row.key)
