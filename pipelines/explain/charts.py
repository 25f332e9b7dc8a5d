"""Charts of the explain page: the worth of each vector, and images beside their captions.

Flows in: values of explain.json. Flows out: inline SVG in the page's colours, drawn inside
`svg.style()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipelines.explain import map_charts as charts
from pipelines.explain.map_charts import Map, square
from pipelines.explain.projection import Ints
from pipelines.pages import svg
from pipelines.pages.numbers import Metric

KINDS = {"removed": "taken out", "replaced": "replaced by the mean word"}
CAPTION = ("◇", "its caption, tied to it")


def worth(found: Mapping[str, Any], metric: Metric, name: str) -> tuple[Markup, Markup]:
    """A bar a vector: the loss without it, and with the mean word in its place. One scale."""
    values = [value * metric.scale for kind in KINDS for value in found[kind]]
    low, high = min(*values, 0.0), max(*values, 0.0)
    room = 0.06 * (high - low) or 1.0
    made = []
    for hue, (kind, words) in enumerate(KINDS.items()):
        ax = svg.axes(height=210, left=46)
        count = len(found[kind])
        lost = [value * metric.scale for value in found[kind]]
        ax.bar(range(1, count + 1), lost, width=0.6, color=svg.hue(hue))
        ax.axhline(0, color=svg.MUTED, linewidth=1)
        ax.set_xlim(0.4, count + 0.6)
        ax.set_ylim(low - room * (low < 0), high + room)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16, min_n_ticks=1))
        ax.set_xlabel("vector")
        label = f"{metric.label} on val lost with each of {count} vectors {words}"
        made.append(svg.markup(ax, f"{name}-{kind}", label))
    return made[0], made[1]


def pairs(each: Map, labels: Ints, name: str, when: str) -> Markup:
    """Images as dots, by their class where they have one, each tied to its caption."""
    ax = square(each)
    ends = np.stack([each.images, each.texts], 1)  # (N, 2, 2)
    for pair in ends:
        ax.plot(*pair.T, color=svg.MUTED, linewidth=0.6, alpha=0.35)
    own = labels if len(labels) else np.zeros(len(ends), np.int64)
    for index in np.unique(own):
        color, shape = charts.look(index)
        mine = each.images[own == index].T
        ax.plot(*mine, shape, color=color, markersize=4, alpha=0.8, markeredgewidth=0)
    paper = {"markerfacecolor": svg.PAPER, "markeredgecolor": svg.INK, "markeredgewidth": 0.8}
    ax.plot(*each.texts.T, "D", **paper, markersize=3.5, zorder=3)
    return svg.markup(ax, name, f"map of {len(ends)} images and their captions {when}")
