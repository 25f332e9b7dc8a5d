"""The arena's page: who is best on what, how surely, and at what cost.

Flows in: the parsed `arena.json`. Flows out: arena.html, which needs no network and no script, and
arena.md. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.arena import charts, verdicts
from pipelines.arena.cells import PROTOCOLS, Block
from pipelines.arena.ranks import Ranks, points, rank_tables
from pipelines.arena.statistics import Table, standings
from pipelines.pages import svg
from pipelines.pages.layout import environment
from pipelines.pages.numbers import Metric, plural
from trainables.files import write_bytes

METHOD = (
    "Every number is of the test images; ± is the sample standard deviation over the seeds that "
    "are done. A run that failed is missing from its adapter's mean, so the mean may flatter.",
    "Rows are compared with the next, paired: the answers to the same images with the same seeds. "
    "The 95 % interval and the two-sided p take images and seeds as drawn: the bootstrap over "
    "images (2,000 resamples; rows with the same bytes are one image) and the spread of the seeds "
    "have Student's factor each; seeds that agree make it no narrower than images alone do. Where "
    "two rows differ on m images, p is at least 2^(1 - m). Both hold for other images of these "
    "classes; beside them stands the interval for other classes, for which whole classes are "
    "drawn. p is not corrected for the number of rows.",
    "ECE is the expected calibration error of the likeliest class in per cent (15 bins; of the "
    "base classes where there are two halves), at the adapter's own temperature and at the one "
    "fitted on the run's val. It is never 0: few images have one by chance.",
    "Base and new classes have images of their own, drawn independently; their harmonic mean is "
    "taken seed by seed.",
    "An adapter that cannot name new classes is ranked by its base accuracy, below all that can.",
    "Ranks: Friedman's test, then Nemenyi's critical difference at the 5 % level (Demsar, JMLR 7, "
    "2006). Both take what they rank as independent, so all that is on a data set is one rank.",
    "Published numbers are quoted from their source for orientation. They were not measured here, "
    "and enter no mean, rank or chart.",
)


@dataclass(frozen=True)
class Sheet:
    """A table as the page shows it; `published` has the literature's rows for each adapter."""

    table: Table
    verdict: str
    keys: list[str]  # of the accuracies, in the order of the columns
    published: Mapping[str, list[Mapping[str, Any]]]
    classes: Mapping[str, list[str]]  # by accuracy key
    anchor: str

    @property
    def calibrated(self) -> bool:
        return any(row.ece for row in self.table.rows)


@dataclass(frozen=True)
class Part:
    """All that is said of one protocol."""

    name: str
    ranks: Ranks
    sentence: str
    diagram: Markup | None
    accuracies: list[tuple[str, Markup]]
    costs: list[tuple[str, Markup]]
    sheets: list[Sheet]


def write_page(arena: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write arena.html and arena.md into `folder`."""
    html, markdown = render(arena)
    paths = [folder / "arena.html", folder / "arena.md"]
    for path, text in zip(paths, (html, markdown), strict=True):
        write_bytes(path, text.encode())
    return paths


def render(arena: Mapping[str, Any]) -> tuple[str, str]:
    """The HTML page and the Markdown, in this order."""
    metric, hues = Metric.of(arena["metric"]), _hues(arena)
    tables = standings(arena)
    overall = rank_tables(tables)
    mixed = len({block.protocol for block in overall.blocks}) > 1
    protocols = [p for p in PROTOCOLS if any(t.block.protocol == p for t in tables)]
    with svg.style():
        parts = [_part(p, tables, arena, metric, hues) for p in protocols]
        diagram = charts.ranks(overall, hues) if mixed else None
    context = {
        "arena": arena,
        "metric": metric,
        "headline": verdicts.headline(tables, overall, metric),
        "details": [*verdicts.summaries(tables), *verdicts.progress(tables)],
        "failures": verdicts.failures(tables),
        "parts_of": parts,
        "overall": overall if mixed else None,
        "overall_diagram": diagram,
        "overall_sentence": verdicts.ranking(overall),
        "method": METHOD,
        "unmatched": _unmatched(arena, tables),
        "names": verdicts.NAMES,
        "seeds": verdicts.seeds,
        "hues": hues,
    }
    found = (
        environment(escape=escape).get_template(f"arena.{kind}.j2").render(context)
        for kind, escape in (("html", True), ("md", False))
    )
    html, markdown = found
    return html, markdown


def _hues(arena: Mapping[str, Any]) -> dict[str, int]:
    """A place in the palette for each adapter; zero-shot is grey."""
    named = [name for name in arena["adapters"] if name != "zero_shot"]
    return {**{name: i for i, name in enumerate(named)}, "zero_shot": -1}


def _part(
    protocol: str,
    tables: Sequence[Table],
    arena: Mapping[str, Any],
    metric: Metric,
    hues: Mapping[str, int],
) -> Part:
    mine = [t for t in tables if t.block.protocol == protocol]
    found = rank_tables(mine, protocol)
    drawn = []
    for shots in sorted({t.block.shots for t in mine}):
        few = [t for t in mine if t.block.shots == shots]
        for key in dict.fromkeys(t.key for t in few if t.key):
            label = verdicts.accuracy(key, metric)
            same = [t for t in few if t.key == key]
            chart = charts.accuracies(same, metric, hues, f"{protocol}-{shots}-{key}", label)
            if chart:
                drawn.append((f"{label}, {plural(shots, 'shot')}", chart))
    return Part(
        name=PROTOCOLS[protocol],
        ranks=found,
        sentence=verdicts.ranking(found),
        diagram=charts.ranks(found, hues),
        accuracies=drawn,
        costs=charts.costs(points(mine, found), metric, hues, protocol),
        sheets=[_sheet(t, arena, metric, f"{protocol}-{i}") for i, t in enumerate(mine)],
    )


def _sheet(table: Table, arena: Mapping[str, Any], metric: Metric, anchor: str) -> Sheet:
    keys = [k for k in ("all", "base", "new", "harmonic") if any(k in r.mean for r in table.rows)]
    classes: dict[str, list[str]] = {}
    for row in table.rows:
        for key, values in row.per_class.items():
            classes[key] = list(dict.fromkeys([*classes.get(key, []), *values]))
    published: dict[str, list[Mapping[str, Any]]] = {}
    for entry in arena.get("literature") or []:
        if _block(entry) == table.block:
            published.setdefault(entry["adapter"], []).append(entry)
    return Sheet(table, verdicts.verdict(table, metric), keys, published, classes, anchor)


def _block(entry: Mapping[str, Any]) -> Block:
    return Block(entry["dataset"], entry["protocol"], entry.get("target"), int(entry["shots"]))


def _unmatched(arena: Mapping[str, Any], tables: Sequence[Table]) -> list[tuple[str, Any]]:
    """(block, entry) of the literature's numbers that have no row of ours beside them."""
    ours = {(table.block, row.adapter) for table in tables for row in table.rows}
    entries = ((_block(entry), entry) for entry in arena.get("literature") or [])
    return [
        (block.name, entry) for block, entry in entries if (block, entry["adapter"]) not in ours
    ]
