"""Hyperparameters drawn: how much each mattered, and the metric against each.

Flows in: the trials of one adapter. Flows out: inline SVG.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution

from pipelines.reporting import svg
from pipelines.reporting.importance import Importance
from pipelines.reporting.numbers import Metric, setting
from pipelines.reporting.study import Trial


def bars(adapter: str, importances: list[Importance], color: str) -> Markup:
    """A bar for each field; the tick is what chance alone exceeds once in twenty."""
    ax = svg.axes(height=26 * len(importances) + 16, left=170, top=4, bottom=12)
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)
    end = max(i.share for i in importances)
    for y, each in enumerate(reversed(importances)):
        alpha = 1.0 if each.stands_out else 0.3
        ax.barh(y, each.share, height=0.5, color=color, alpha=alpha)
        chance = min(each.chance, end * 1.05)
        ax.plot([chance, chance], [y - 0.4, y + 0.4], color=svg.INK, linewidth=1.6)
        place = max(each.share, chance) + 0.03 * end
        ax.text(place, y, f"{each.share:.0%}", va="center", color=svg.INK)
    ax.set_xlim(0, end * 1.25)
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
    ax = svg.axes(height=150, width=220, left=30, top=6, bottom=22)
    place = _axis(ax, trials, field)
    scored = [
        (t, t.score * metric.scale) for t in trials if t.state != "failed" and t.score is not None
    ]
    low = min((y for _, y in scored), default=0.0)
    for trial, y in scored:
        fill = color if trial.state == "complete" else svg.PAPER
        face = {"color": color, "markerfacecolor": fill, "alpha": 1.0 if trial is best else 0.75}
        ax.plot(place(trial), y, marker="o", markersize=9 if trial is best else 5.5, **face)
    for trial in trials:
        if trial.state == "failed":
            ax.plot(place(trial), low, marker="x", color=svg.INK, markersize=6, markeredgewidth=1.6)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.tick_params(labelsize=9)
    ax.margins(x=0.08, y=0.12)
    return ax


def _axis(ax: Any, trials: list[Trial], field: str) -> Any:
    """Set the horizontal axis for `field`; returns where a trial stands on it."""
    space = trials[0].spaces[field]
    if isinstance(space, CategoricalDistribution):
        choices = [setting(choice) for choice in space.choices]
        ax.set_xticks(range(len(choices)), [choice[:12] for choice in choices])

        def spread(trial: Trial) -> float:
            shift = ((trial.number * 0.618) % 1 - 0.5) * 0.3
            return choices.index(setting(trial.params[field])) + shift

        ax.set_xlim(-0.5, len(choices) - 0.5)
        ax.set_autoscalex_on(False)
        return spread
    if getattr(space, "log", False):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(numticks=5))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    return lambda trial: trial.params[field]
