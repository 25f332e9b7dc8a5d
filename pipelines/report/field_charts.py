"""Hyperparameters drawn: how much each mattered, and the metric against each.

Flows in: the trials of one adapter. Flows out: inline SVG.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pipelines.pages import svg
from pipelines.pages.numbers import Metric, setting
from pipelines.report.importance import Importance
from pipelines.report.study import Trial


def bars(adapter: str, importances: list[Importance], color: str) -> Markup:
    """A bar for each field; the tick is what chance alone exceeds once in twenty."""
    left = 12 + 6 * max(len(i.field) for i in importances)
    ax = svg.axes(height=26 * len(importances) + 16, left=left, top=4, bottom=12)
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)
    end = max(max(i.share, i.chance) for i in importances)
    for y, each in enumerate(reversed(importances)):
        alpha = 1.0 if each.stands_out else 0.3
        ax.barh(y, each.share, height=0.5, color=color, alpha=alpha)
        ax.plot([each.chance] * 2, [y - 0.4, y + 0.4], color=svg.INK, linewidth=1.6)
        ax.text(end * 1.2, y, f"{each.share:.0%}", va="center", ha="right", color=svg.INK)
    ax.set_xlim(0, end * 1.2)
    ax.set_xticks([])
    names = [i.field for i in reversed(importances)]
    ax.set_yticks(range(len(names)), names, color=svg.INK)
    return svg.markup(ax, f"importance-{adapter}", f"importance of {adapter}'s hyperparameters")


def slices(
    trials: list[Trial], metric: Metric, color: str, best: Trial | None
) -> list[tuple[str, Markup]]:
    """The metric against each field that was varied, one small chart each; `best` is larger."""
    made = []
    for field in sorted({field for t in trials for field in t.params}):
        having = [t for t in trials if field in t.params]
        if len({str(t.params[field]) for t in having}) > 1:
            ax = _slice(having, field, metric, color, best)
            name = f"{having[0].adapter}-{field}"
            made.append((field, svg.markup(ax, f"slice-{name}", f"{metric.label} by {field}")))
    return made


def _slice(trials: list[Trial], field: str, metric: Metric, color: str, best: Trial | None) -> Any:
    space = trials[0].spaces[field]
    choices = [setting(choice) for choice in getattr(space, "choices", ())]
    upright = sum(map(len, choices)) > 28  # too long to stand side by side
    bottom = 100 if upright else 24
    ax = svg.axes(height=136 + bottom, width=230, left=34, top=8, bottom=bottom)
    if choices:
        ax.set_xticks(range(len(choices)), [c[:16] for c in choices], rotation=90 * upright)
        ax.set_xlim(-0.5, len(choices) - 0.5)
        ax.set_autoscalex_on(False)
    else:
        whole = all(isinstance(t.params[field], int) for t in trials)
        _numeric(ax, log=getattr(space, "log", False), whole=whole)

    def place(trial: Trial) -> Any:
        value = trial.params[field]
        spread = ((trial.number * 0.618) % 1 - 0.5) * 0.3  # equal choices stand side by side
        return choices.index(setting(value)) + spread if choices else value

    _scatter(ax, trials, place, metric, color, best)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.margins(x=0.08, y=0.12)
    return ax


def _scatter(
    ax: Any,
    trials: list[Trial],
    place: Callable[[Trial], Any],
    metric: Metric,
    color: str,
    best: Trial | None,
) -> None:
    scored = [t for t in trials if t.state != "failed" and t.score is not None]
    for trial in scored:
        fill = color if trial.state == "complete" else svg.PAPER
        face = {"color": color, "markerfacecolor": fill, "alpha": 1.0 if trial is best else 0.75}
        size = 9 if trial is best else 5.5
        ax.plot(place(trial), (trial.score or 0.0) * metric.scale, "o", markersize=size, **face)
    low = min((t.score or 0.0 for t in scored), default=0.0) * metric.scale
    for trial in trials:
        if trial.state == "failed":
            ax.plot(place(trial), low, "x", color=svg.INK, markersize=6, markeredgewidth=1.6)


def _numeric(ax: Any, log: bool, whole: bool) -> None:
    """A few plain numbers along the horizontal axis, whole where all values are."""
    if not log:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=whole, min_n_ticks=1))
        return
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=5))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
