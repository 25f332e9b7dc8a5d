"""The search drawn: learning curves, the best so far, and ASHA's rungs.

Flows in: a `Study`, its metric, and each adapter's place in the palette. Flows out: inline SVG.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipelines.pages import svg
from pipelines.pages.numbers import Metric, plural
from pipelines.report.study import Study, Trial
from pipelines.runs.baselines import WORDS

Hues = Mapping[str, int]  # the place of each adapter in the palette


def limits(study: Study, metric: Metric) -> tuple[float, float]:
    """One vertical scale for all charts of the metric, in shown units."""
    values = [v for t in study.trials for v in (*t.curve.values(), t.value) if v is not None]
    values += [study.baseline] if study.baseline is not None else []
    low, high = min(values, default=0.0) * metric.scale, max(values, default=1.0) * metric.scale
    room = 0.08 * (high - low) or 1.0
    return low - room, high + room


def curves(study: Study, adapter: str, metric: Metric, hues: Hues) -> Markup | None:
    """Every trial of `adapter`, the val metric by epoch; the best one strong and named."""
    trials = [t for t in study.of(adapter) if t.curve]
    if not trials:
        return None
    ax = svg.axes(height=210)
    best = study.best(adapter)
    for trial in sorted(trials, key=lambda t: t is best):
        _curve(ax, trial, metric, svg.hue(hues[adapter]), trial is best)
    baseline(ax, study, metric)
    ax.set_ylim(limits(study, metric))
    ax.set_xlim(left=0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=8))
    ax.set_xlabel("epoch")
    return svg.markup(ax, f"curves-{adapter}", f"{metric.label} on val by epoch, {adapter}")


def _curve(ax: Any, trial: Trial, metric: Metric, color: str, best: bool) -> None:
    epochs = list(trial.curve)
    values = [v * metric.scale for v in trial.curve.values()]
    faint = 1.0 if best else {"pruned": 0.35}.get(trial.state, 0.6)
    dashes = {"failed": (0, (4, 2)), "running": (0, (1, 1.5))}.get(trial.state, "-")
    ax.plot(
        epochs, values, color=color, alpha=faint, linestyle=dashes, linewidth=2.6 if best else 1.2
    )
    end = (epochs[-1:], values[-1:])
    if trial.state == "failed":
        ax.plot(*end, marker="x", color=svg.INK, markersize=7, markeredgewidth=1.8)
    elif trial.state == "pruned":
        ax.plot(*end, marker="o", color=color, alpha=0.6, markerfacecolor=svg.PAPER, markersize=5)
    else:
        ax.plot(*end, marker="o", color=color, alpha=faint, markersize=4)
    if best:
        top = max(epochs, key=lambda epoch: (trial.curve[epoch], -epoch))
        at = (top, trial.curve[top] * metric.scale)
        ax.plot(*at, marker="o", color=color, markersize=8)
        place = {"xytext": (-4, 8), "textcoords": "offset points", "ha": "right"}
        ax.annotate(f"trial {trial.number}", at, color=svg.INK, fontweight="bold", **place)


def history(study: Study, metric: Metric, hues: Hues) -> Markup | None:
    """Trials in the order in which they began, and the best value so far."""
    scored = [t for t in study.trials if t.score is not None]
    if not scored:
        return None
    ax = svg.axes(height=280)
    low, high = limits(study, metric)
    for trial in study.trials:
        if trial.state == "failed":
            foot = low + 0.03 * (high - low)
            ax.plot(trial.number, foot, "x", color=svg.INK, markersize=6, markeredgewidth=1.6)
        elif trial.score is not None:
            at = (trial.number, trial.score * metric.scale)
            _dot(ax, at, trial, hues, hollow=trial.state != "complete")
    best, steps = float("-inf"), []
    for trial in study.trials:
        best = max(best, trial.value if trial.value is not None else best)
        steps.append(best * metric.scale)
    line = {"color": svg.INK, "linewidth": 1.4, "zorder": 1.9}  # under the trials' marks
    ax.step([t.number for t in study.trials], steps, where="post", **line)
    baseline(ax, study, metric)
    ax.set_ylim(low, high)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=10))
    ax.set_xlabel("trial")
    return svg.markup(ax, "history", f"{metric.label} on val by trial, and the best so far")


def rungs(study: Study, metric: Metric, hues: Hues) -> Markup | None:
    """Where each trial stood at each rung; hollow where ASHA stopped it."""
    if not study.rungs or not any(t.curve for t in study.trials):
        return None
    ax = svg.axes(height=280, top=30)
    for trial in study.trials:
        reached = [i for i, rung in enumerate(study.rungs) if rung <= max(trial.curve, default=0)]
        values = [(trial.at(study.rungs[i]) or 0.0) * metric.scale for i in reached]
        shift = ((trial.number * 0.618) % 1 - 0.5) * 0.45  # spreads the dots, always the same way
        places = [i + shift for i in reached]
        color = svg.hue(hues[trial.adapter])
        ax.plot(places, values, color=color, alpha=0.25, linewidth=1)
        for i, at in enumerate(zip(places, values, strict=True), 1):
            _dot(ax, at, trial, hues, hollow=trial.state == "pruned" and i == len(places))
    for i, rung in enumerate(study.rungs):
        number = sum(max(t.curve, default=0) >= rung for t in study.trials)
        top = {"ha": "center", "va": "bottom", "transform": ax.get_xaxis_transform()}
        ax.text(i, 1.02, plural(number, "trial"), color=svg.INK, fontweight="bold", **top)
    baseline(ax, study, metric)
    ax.set_ylim(limits(study, metric))
    ax.set_xlim(-0.4, len(study.rungs) - 0.6)
    ax.set_xticks(range(len(study.rungs)), [f"epoch {rung}" for rung in study.rungs])
    return svg.markup(ax, "rungs", f"{metric.label} on val at the rungs of ASHA")


def front(study: Study, metric: Metric, hues: Hues) -> Markup | None:
    """For a search with two goals, each trial by both; the line joins those that none beats."""
    if not study.retains or not study.front:
        return None
    both = [t for t in study.trials if t.value is not None and t.retained is not None]
    ax = svg.axes(height=280)

    def place(value: float | None, retained: float | None) -> tuple[float, float]:
        return (retained or 0.0) * 100, (value or 0.0) * metric.scale

    line = [place(t.value, t.retained) for t in study.front]
    ax.step(*zip(*line, strict=True), where="pre", color=svg.INK, linewidth=1.4, zorder=1)
    beaten = [t for t in both if t not in study.front]
    for trial in [*beaten, *study.front]:
        _dot(ax, place(trial.value, trial.retained), trial, hues, hollow=trial in beaten)
    text = {"textcoords": "offset points", "xytext": (6, 6)}
    if study.baseline is not None and study.baseline_retained is not None:
        at = place(study.baseline, study.baseline_retained)
        ax.plot(*at, marker="D", color=svg.MUTED, markersize=7)
        ax.annotate(WORDS[study.against], at, color=svg.MUTED, **text)
    best = study.best()
    if best is not None and best.retained is not None:
        at = place(best.value, best.retained)
        ax.annotate(f"trial {best.number}", at, color=svg.INK, fontweight="bold", **text)
    ax.margins(x=0.14, y=0.12)
    ax.set_xlabel("retained: accuracy on classes never trained on, %")
    return svg.markup(ax, "front", f"{metric.label} on val against what is retained, by trial")


def _dot(ax: Any, at: tuple[float, float], trial: Trial, hues: Hues, hollow: bool) -> None:
    color, shape = svg.hue(hues[trial.adapter]), svg.marker(hues[trial.adapter])
    fill = svg.PAPER if hollow else color
    ax.plot(*at, marker=shape, color=color, markerfacecolor=fill, markersize=6, markeredgewidth=1.3)


def baseline(ax: Any, study: Study, metric: Metric) -> None:
    """A line at the baseline's value, behind all else."""
    if study.baseline is None:
        return
    y = study.baseline * metric.scale
    ax.axhline(y, color=svg.MUTED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    text = {
        "xytext": (-2, -4),
        "textcoords": "offset points",
        "ha": "right",
        "va": "top",
        "zorder": 1,
    }
    behind = {"facecolor": svg.PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1}
    at = {"xy": (1, y), "xycoords": ax.get_yaxis_transform()}
    ax.annotate(WORDS[study.against], **at, color=svg.MUTED, bbox=behind, **text)
