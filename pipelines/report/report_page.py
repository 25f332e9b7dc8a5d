"""The page: everything measured, in the order in which a reader asks for it.

Flows in: a `Study` and perhaps a `Result`. Flows out: the text of report.html, which needs no
network and no script, and of report.md. Equal inputs give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.hold import refuse_links
from pipelines.pages import numbers, svg
from pipelines.pages.checked import Estimate
from pipelines.pages.intervals import verdict
from pipelines.pages.layout import environment
from pipelines.pages.numbers import Metric
from pipelines.report import (
    field_charts,
    pairs,
    probabilities,
    race_chart,
    reliability_chart,
    schedule_charts,
    search_charts,
    statements,
)
from pipelines.report.importance import FEWEST, Importance, importances, ranked
from pipelines.report.pictures import KINDS
from pipelines.report.result import Result, Row, read_result
from pipelines.report.study import Study, Trial, read_study
from pipelines.runs.baselines import WORDS
from trainables.files import write_bytes


@dataclass(frozen=True)
class Line:
    """A row of the leaderboard; `left`, `width` and `dot` place its interval, in per cent."""

    row: Row
    value: Estimate
    gain: Estimate | None
    verdict: str
    val: float | None
    left: float
    width: float
    dot: float


@dataclass(frozen=True)
class Board:
    """The leaderboard, best first, and the ends of its scale."""

    lines: list[Line]
    low: float
    high: float
    baseline: float | None  # where the baseline stands on the scale, in per cent


@dataclass(frozen=True)
class Fields:
    """What the search learned about the hyperparameters of one adapter."""

    adapter: str
    trials: int
    importances: list[Importance]
    bars: Markup | None
    slices: list[tuple[str, Markup]]


@dataclass(frozen=True)
class Rung:
    """A rung of ASHA: how many trials reached it, and which were stopped there."""

    epoch: int
    reached: int
    stopped: list[Trial]
    best: float | None


def write_report(run: Path) -> tuple[list[Path], bool]:
    """Write report.html and report.md of a run: their paths, and whether they say anything new."""
    refuse_links(run)
    texts = render(run, read_study(run), read_result(run / "result.json"))
    paths = [run / "report.html", run / "report.md"]
    new = {path: text.encode() for path, text in zip(paths, texts, strict=True)}
    if all(path.exists() and path.read_bytes() == data for path, data in new.items()):
        return paths, False
    for path, data in new.items():
        write_bytes(path, data)
    return paths, True


def render(run: Path, study: Study, result: Result | None) -> tuple[str, str]:
    """The HTML page and the Markdown, in this order."""
    metric = statements.metric_of(study, result)
    against = result.against if result else study.against
    hues = _hues(study, result, against)
    believed = probabilities.section(result)
    with svg.style():
        charts = _charts(study, metric, hues) | {"schedules": schedule_charts.schedules(run)}
        charts |= {"diagrams": reliability_chart.diagrams(believed)}
    context = {
        "run": run.as_posix(),
        "explained": (run / "explain" / "explain.html").is_file(),
        "study": study,
        "result": result,
        "metric": metric,
        "against": against,
        "baseline": WORDS[against],
        "keys": list(
            dict.fromkeys(k for row in (result.rows if result else []) for k in row.metrics)
        ),
        "headline": statements.headline(study, result),
        "details": statements.details(study, result),
        "tiles": statements.tiles(study, result),
        "pair_lines": pairs.sentences(result, metric) if result else [],
        "believed": believed,
        "board": _board(result, metric, study.baseline) if result else None,
        "rungs": _rungs(study),
        "hues": hues,
        "fewest": FEWEST,
        **charts,
        "cider": Metric.of("cider_d"),  # of one caption
        "kinds": _kinds(result),
    }
    html = environment(escape=True).get_template("report.html.j2").render(context)
    markdown = environment(escape=False).get_template("report.md.j2").render(context)
    return html, markdown


def _hues(study: Study, result: Result | None, against: str) -> dict[str, int]:
    """A place in the palette for each adapter: the same wherever it appears; the baseline is
    grey."""
    named = {*study.adapters, *(row.adapter for row in (result.rows if result else []))}
    hues = {name: i for i, name in enumerate(sorted(named - {against}))}
    return {**hues, against: -1}


def _board(result: Result, metric: Metric, baseline_val: float | None) -> Board:
    measured = [row for row in result.rows if result.key in row.metrics]
    values = [row.metrics[result.key] for row in measured]
    low, high = min((v.low for v in values), default=0), max((v.high for v in values), default=1)
    room = 0.06 * (high - low) or 0.01
    low, high = low - room, high + room

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    lines = []
    for row, value in zip(measured, values, strict=True):
        gain = None if row.is_baseline else row.gains.get(result.key)
        word = verdict(gain, metric) if gain else ""
        span = place(value.low), round(place(value.high) - place(value.low), 2)
        name = result.key.partition("@")[0]
        val = row.val.get(name)
        if row.is_baseline and baseline_val is not None:  # measured as the trials were: by folds
            val = baseline_val
        lines.append(Line(row, value, gain, word, val, *span, place(value.value)))
    lines.sort(key=lambda line: line.value.value, reverse=metric.higher_is_better)
    baseline = next((line.dot for line in lines if line.row.is_baseline), None)
    return Board(lines, low, high, baseline)


def _kinds(result: Result | None) -> list[tuple[str, str]]:
    """The kinds of captions that are shown, each with its heading."""
    of = f" of {result.selected.name}" if result and result.selected else ""
    return [(kind, f"{numbers.first(kind)} by CIDEr-D{of}") for kind in KINDS]


def _rungs(study: Study) -> list[Rung]:
    made = []
    for epoch in study.rungs:
        reached = [t for t in study.trials if max(t.curve, default=0) >= epoch]
        stopped = [t for t in reached if t.state == "pruned" and t.rung(study.rungs) == epoch]
        best = max((v for t in reached if (v := t.at(epoch)) is not None), default=None)
        made.append(Rung(epoch, len(reached), stopped, best))
    return made


def _charts(study: Study, metric: Metric, hues: dict[str, int]) -> dict[str, Any]:
    best_first = [*(t.adapter for t in study.per_adapter), *study.adapters]
    names = [name for name in dict.fromkeys(best_first) if study.of(name)]
    curves = [
        (name, search_charts.curves(study, name, metric, hues))
        for name in names
        if name != study.against  # one measurement, no learning
    ]
    return {
        "curves": [(name, chart) for name, chart in curves if chart],
        "history": search_charts.history(study, metric, hues),
        "front": search_charts.front(study, metric, hues),
        "lanes": (found := race_chart.lanes_of(study)),
        "race": race_chart.race(study, found, metric, hues),
        "rung_chart": search_charts.rungs(study, metric, hues),
        "fields": [_fields(study, name, metric, hues) for name in names],
    }


def _fields(study: Study, adapter: str, metric: Metric, hues: dict[str, int]) -> Fields:
    trials, color = study.of(adapter), svg.hue(hues[adapter])
    found = importances(trials)
    bars = field_charts.bars(adapter, found, color) if found else None
    drawn = field_charts.slices(trials, metric, color, study.best(adapter))
    order = {each.field: i for i, each in enumerate(found)}
    drawn.sort(key=lambda pair: order.get(pair[0], len(order)))
    return Fields(adapter, len(ranked(trials)), found, bars, drawn)
