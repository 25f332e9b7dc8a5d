"""The race between adapters drawn: the best of each so far, by the epochs that were spent on it.

Flows in: the lanes of a study, its metric, and each adapter's place in the palette. Flows out:
inline SVG; nothing where one adapter was searched alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipelines.pages import svg
from pipelines.pages.numbers import Metric
from pipelines.report.search_charts import Hues, baseline, limits
from pipelines.report.study import Study
from pipelines.tune.study.lanes import Lane, Step, lanes


def lanes_of(study: Study) -> list[Lane]:
    """The lanes of a race; None where there is none."""
    adapters = study.facts.get("adapters", [])
    if len(adapters) < 2 or not study.trials:
        return []
    steps = [
        Step(t.number, t.adapter, t.epochs, None if t.over else t.value, t.race)
        for t in study.trials
    ]
    return lanes(adapters, steps)


def race(study: Study, found: Sequence[Lane], metric: Metric, hues: Hues) -> Markup | None:
    """A step line an adapter; hollow at its end where it was dropped or had nothing left."""
    drawn = [one for one in found if one.path]
    if not drawn:
        return None
    ax = svg.axes(height=280)
    for lane in drawn:
        _lane(ax, lane, metric, svg.hue(hues[lane.adapter]), svg.marker(hues[lane.adapter]))
    baseline(ax, study, metric)
    ax.set_ylim(limits(study, metric))
    ax.margins(x=0.06)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=10))
    ax.set_xlabel("epochs spent on the adapter")
    label = f"the best {metric.label} on val of each adapter, by the epochs spent on it"
    return svg.markup(ax, "race", label)


def _lane(ax: Any, lane: Lane, metric: Metric, color: str, marker: str) -> None:
    epochs = [lane.path[0][0], *(spent for spent, _ in lane.path), lane.spent]
    values = [value * metric.scale for _, value in lane.path]
    values = [values[0], *values, values[-1]]
    ax.step(epochs, values, where="post", color=color, linewidth=1.6)
    gains = [0, *(place for place, (a, b) in enumerate(pairwise(values), 1) if b > a)]
    ax.plot(
        [epochs[place] for place in gains],
        [values[place] for place in gains],
        **{"color": color, "marker": marker, "markersize": 5, "linestyle": "none"},
    )
    ended = lane.waits is not None or lane.out is not None
    fill = svg.PAPER if ended else color
    ax.plot(epochs[-1], values[-1], marker=marker, color=color, markerfacecolor=fill, markersize=8)
