"""The sweep drawn: the metric and what is retained by share, and one against the other.

Flows in: each adapter's `Curve`, zero-shot's `Point` and the run's metric. Flows out: the text of
sweep.html, which needs no network and no script. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.pages import svg
from pipelines.pages.layout import environment
from pipelines.pages.numbers import Metric
from pipelines.sweep.points import Curve, Point

RETAINED = Metric.of("accuracy")


def render(run: Path, metric: str, curves: Sequence[Curve], zero_shot: Point) -> str:
    task = Metric.of(metric)
    title = task.label[:1].upper() + task.label[1:]
    hues = {name: i for i, name in enumerate(sorted({curve.adapter for curve in curves}))}
    kept = [curve for curve in curves if curve.points[0].retained is not None]
    with svg.style():
        charts = [
            (
                f"{title} by share",
                _by_share("task", curves, hues, metric, zero_shot, lambda p: p.value, task),
            )
        ]
        if kept:
            retained = _by_share(
                *("retained", kept, hues, metric, zero_shot, lambda p: p.retained, RETAINED)
            )
            charts += [
                ("Retained by share", retained),
                (
                    f"{title} against retained; 1 and the best share are named",
                    _against(kept, hues, metric, zero_shot, task),
                ),
            ]
    context = {
        **{"run": run.as_posix(), "metric": task, "retained": RETAINED, "curves": curves},
        **{"best": {curve.name: curve.best(metric) for curve in curves}, "zero_shot": zero_shot},
        **{"hues": hues, "charts": charts, "measured": zero_shot.retained is not None},
    }
    return environment(escape=True).get_template("sweep.html.j2").render(context)


def _by_share(
    name: str,
    curves: Sequence[Curve],
    hues: dict[str, int],
    metric: str,
    zero_shot: Point,
    of: Callable[[Point], float | None],
    shown: Metric,
) -> Markup:
    ax = svg.axes(height=250)
    for curve in curves:
        line = [(p.share, _scaled(of(p), shown)) for p in curve.points]
        best = curve.best(metric)
        _path(ax, line, hues[curve.adapter], (best.share, _scaled(of(best), shown)))
    y = _scaled(of(zero_shot), shown)
    ax.axhline(y, color=svg.MUTED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    _label(ax, "zero-shot", (1, y), ax.get_yaxis_transform())
    ax.margins(x=0.05, y=0.12)
    ax.set_xlabel("share of what was learned")
    return svg.markup(ax, f"sweep-{name}", f"{shown.label} on val by share")


def _against(
    curves: Sequence[Curve], hues: dict[str, int], metric: str, zero_shot: Point, task: Metric
) -> Markup:
    ax = svg.axes(height=250)

    def place(point: Point) -> tuple[float, float]:
        return _scaled(point.retained, RETAINED), _scaled(point.value, task)

    for curve in curves:
        best = curve.best(metric)
        _path(ax, [place(p) for p in curve.points], hues[curve.adapter], place(best))
        for point in curve.points:
            if point is best or point.share == 1:  # all of them would hide each other
                beside = {"xytext": (9, 4), "textcoords": "offset points"}
                ax.annotate(f"{point.share:g}", place(point), color=svg.INK, **beside)
    ax.plot(*place(zero_shot), marker="D", color=svg.MUTED, markersize=7)
    below = {"xytext": (0, -16), "textcoords": "offset points", "ha": "center"}
    ax.annotate("zero-shot", place(zero_shot), color=svg.MUTED, **below)
    ax.margins(x=0.14, y=0.2)
    ax.set_xlabel("retained: accuracy on classes never trained on, %")
    return svg.markup(ax, "sweep-both", f"{task.label} against what is retained, on val")


def _path(ax: Any, line: list[tuple[float, float]], hue: int, best: tuple[float, float]) -> None:
    """A curve with its points; the best is ringed."""
    color, shape = svg.hue(hue), svg.marker(hue)
    ax.plot(*zip(*line, strict=True), color=color, linewidth=1.8, marker=shape, markersize=5)
    ring = {"markerfacecolor": "none", "markeredgecolor": svg.INK, "markeredgewidth": 1.4}
    ax.plot(*best, marker="o", markersize=12, linestyle="", **ring)


def _label(ax: Any, text: str, at: tuple[float, float], transform: Any) -> None:
    place = {"xytext": (-2, -4), "textcoords": "offset points", "ha": "right", "va": "top"}
    behind = {"facecolor": svg.PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1}
    ax.annotate(text, xy=at, xycoords=transform, color=svg.MUTED, bbox=behind, zorder=1, **place)


def _scaled(value: float | None, shown: Metric) -> float:
    assert value is not None
    return value * shown.scale
