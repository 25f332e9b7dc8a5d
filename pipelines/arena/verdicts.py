"""An arena's numbers in words that claim no more than the numbers show.

Flows in: tables and ranks. Flows out: sentences, the same for the page and the Markdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipelines.arena.cells import PROTOCOLS
from pipelines.arena.ranks import Ranks
from pipelines.arena.statistics import Pair, Standing, Table
from pipelines.pages.numbers import Metric, plural

NAMES = {"all": "all classes", "base": "base", "new": "new", "harmonic": "harmonic mean"}


def best(table: Table) -> list[str]:
    """The adapters with the highest mean of a block; several where they are equal."""
    return [r.adapter for r in table.ranked if r.accuracy == table.ranked[0].accuracy]


def clear(table: Table) -> bool:
    """Whether the lead of the first over the second is larger than the chance of the test images
    explains."""
    pair = table.ranked[0].next if len(table.ranked) > 1 else None
    return pair is not None and len(best(table)) == 1 and pair.key == table.key and pair.leads


def verdict(table: Table, metric: Metric) -> str:
    """One sentence for one block: who is best, and whether the data show it."""
    if not table.ranked:
        return "No run has ended with a number."
    first = table.ranked[0]
    value = f"{metric.show(first.accuracy)} {accuracy(table.key, metric)}"
    tied = best(table)
    if len(tied) > 1:
        return f"{listed(tied)} are equally good: {value}."
    if len(table.ranked) == 1:
        return f"{first.adapter} is the only one with a number: {value}."
    if clear(table) and first.next:
        return f"{first.adapter} is best: {value}, {ahead(first.next, metric)}."
    if first.next:
        return (
            f"{first.adapter} has the highest mean, {value}, but its lead over "
            f"{first.next.other} is not shown ({interval(first.next, metric)})."
        )
    return (
        f"{first.adapter} has the highest mean, {value}; its lead over "
        f"{table.ranked[1].adapter} cannot be tested, as they share no seed."
    )


def accuracy(key: str | None, metric: Metric) -> str:
    return metric.label if key == "all" else f"{NAMES.get(key or '', key)} {metric.label}"


def ahead(pair: Pair, metric: Metric) -> str:
    size = metric.bare(pair.gap.difference)
    return f"{size} points ahead of {pair.other} ({interval(pair, metric)})"


def interval(pair: Pair, metric: Metric) -> str:
    seed = ", one seed" if len(pair.seeds) == 1 else ""
    return f"95 % interval {metric.gain(pair.gap.low)} to {metric.gain(pair.gap.high)}{seed}"


def headline(tables: Sequence[Table], overall: Ranks, metric: Metric) -> str:
    """The one sentence that answers the reader's question."""
    measured = [t for t in tables if t.ranked]
    if not measured:
        return "No run of the arena has ended with a number yet."
    if len(measured) == 1:
        sentence = verdict(measured[0], metric)
        return f"On {measured[0].block.name}: {sentence}"
    if overall.problem is None:
        return _ranked(overall, len(measured))
    wins = Counter(name for t in measured for name in best(t))
    name, times = wins.most_common(1)[0]
    many = [other for other, n in wins.items() if n == times]
    shown = sum(clear(t) for t in measured if len(best(t)) == 1 and best(t)[0] in many)
    if len(many) > 1:
        return (
            f"{listed(many)} each have the highest mean in {times} of "
            f"{plural(len(measured), 'comparison')}, and the test images show a lead in {shown}."
        )
    return (
        f"{name} has the highest mean in {times} of {plural(len(measured), 'comparison')}, "
        f"and the test images show its lead in {shown}."
    )


def _ranked(found: Ranks, measured: int) -> str:
    """The sentence of a tested ranking."""
    first, *others = found.average
    few = "" if len(found.blocks) == measured else f" of {measured}"
    where = f"{len(found.datasets)} data sets ({len(found.blocks)}{few} comparisons)"
    if not found.differ:
        return f"No adapter is shown to be better than another over {where}."
    beaten = [name for name in others if found.apart(first, name)]
    equal = [name for name in others if name not in beaten]
    lead = f"{first} has the best average rank ({found.average[first]:.1f}) over {where}"
    if not equal:
        return f"{lead} and is told apart from every other adapter."
    if not beaten:
        return f"{lead}, but is not told apart from any other adapter."
    return f"{lead}; it is not told apart from {listed(equal)}."


def ranking(found: Ranks) -> str:
    """Friedman's test and Nemenyi's difference of one ranking, in sentences."""
    if found.problem is not None or found.critical is None or found.p is None:
        return found.problem or ""
    test = f"Friedman's test: {found.statistic:.1f}, {_p(found.p)}"
    if not found.differ:
        return f"{test}; the ranks are not shown to differ, so no two adapters are told apart."
    return f"{test}. Ranks differ where they are more than {found.critical:.2f} apart (Nemenyi)."


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def summaries(tables: Sequence[Table]) -> list[str]:
    """A sentence a protocol: who wins how often, and how often that is shown."""
    made = []
    for protocol, name in PROTOCOLS.items():
        mine = [t for t in tables if t.block.protocol == protocol and t.ranked]
        wins: dict[str, list[Table]] = {}
        for table in mine:
            wins.setdefault(listed(best(table)), []).append(table)
        parts = [
            f"{who} on {len(won)} ({sum(map(clear, won))} shown)"
            for who, won in sorted(wins.items(), key=lambda item: -len(item[1]))
        ]
        if parts:
            made.append(
                f"{name.capitalize()}, highest mean in {plural(len(mine), 'comparison')}: "
                f"{', '.join(parts)}."
            )
    return made


def failures(tables: Sequence[Table]) -> list[tuple[str, str, int, str]]:
    """(adapter, block, seed, reason) of every run that failed."""
    return [
        (row.adapter, table.block.name, seed, reason)
        for table in tables
        for row in table.rows
        for seed, reason in row.failures
    ]


def progress(tables: Sequence[Table]) -> list[str]:
    """How many runs there are, which failed, and how many are still to come."""
    rows = [row for table in tables for row in table.rows]
    done, failed = sum(len(r.seeds) for r in rows), sum(len(r.failures) for r in rows)
    pending = sum(len(r.pending) for r in rows)
    lines = []
    if failed:
        by_adapter = Counter({r.adapter: 0 for r in rows})
        for row in rows:
            by_adapter[row.adapter] += len(row.failures)
        who = ", ".join(
            f"{name} {n} times" if n > 1 else f"{name} once"
            for name, n in by_adapter.most_common()
            if n
        )
        lines.append(f"{failed} of {plural(done + failed + pending, 'run')} failed: {who}.")
    else:
        lines.append(f"{done} of {plural(done + pending, 'run')} are done, none failed.")
    if pending:
        lines.append(f"{plural(pending, 'run')} still to come: every number may yet change.")
    return lines


def seeds(row: Standing) -> str:
    """How many seeds a row has, of how many."""
    planned = len(row.seeds) + len(row.failures) + len(row.pending)
    return str(planned) if planned == len(row.seeds) else f"{len(row.seeds)} of {planned}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of many, the first three and the number of the others."""
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
