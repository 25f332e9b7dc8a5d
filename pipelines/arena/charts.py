"""The arena drawn: average ranks, accuracy against cost, and accuracy by data set.

Flows in: ranks, points, tables, and each adapter's place in the palette. Flows out: inline SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pipelines.arena.ranks import Point, Ranks
from pipelines.arena.statistics import Table, pareto
from pipelines.pages import svg
from pipelines.pages.numbers import Metric

Hues = Mapping[str, int]  # the place of each adapter in the palette
LETTER, LINE = 6.3, 14  # the width and height of a letter of 11 px, roughly
COSTS = {"seconds": "seconds a run", "parameters": "trainable parameters"}


def ranks(found: Ranks, hues: Hues) -> Markup | None:
    """The critical-difference diagram (Demsar 2006): bars join adapters that are not told apart."""
    if found.problem or found.critical is None:
        return None
    names, k = list(found.average), len(found.average)
    half = (k + 1) // 2
    side = min(16 + LETTER * max(map(len, names)), 0.3 * svg.WIDTH)
    above, bars = 46, 10 * len(found.groups)
    height = int(above + 14 + bars + 19 * half + 8)
    ax = _canvas(height)
    width = svg.WIDTH - 2 * side

    def x(rank: float) -> float:  # the best, 1, is on the right
        return side + width * (k - rank) / (k - 1)

    _ruler(ax, k, x, height - above, found.critical)
    for i, group in enumerate(found.groups):
        y = height - above - 10 - 10 * i
        ends = [x(found.average[group[0]]) + 4, x(found.average[group[-1]]) - 4]
        ax.plot(ends, [y, y], color=svg.INK, linewidth=4, solid_capstyle="round", zorder=3)
    for i, name in enumerate(names):
        right, level = i < half, i if i < half else k - 1 - i
        y = height - above - 14 - bars - 19 * level - 8
        at, end = x(found.average[name]), svg.WIDTH - side + 6 if right else side - 6
        color = svg.hue(hues[name])
        ax.plot([at, at, end], [height - above, y, y], color=color, linewidth=1.3)
        shape = svg.marker(hues[name])
        ax.plot(at, height - above, marker=shape, color=color, markersize=_size(shape) - 1)
        text = {"va": "center", "ha": "left" if right else "right", "color": svg.INK}
        ax.text(end + (4 if right else -4), y, _short_name(name, side - 14), **text)
    return svg.markup(
        ax, f"ranks-{found.protocol}", f"average ranks and their critical difference, {found.title}"
    )


def _size(shape: str) -> float:
    return 10 if shape == "*" else 7  # a star's arms are thin


def _short_name(name: str, pixels: float) -> str:
    """`name`, without its middle where it is too long: beginnings are often alike."""
    longest = int(pixels / LETTER)
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _canvas(height: int) -> Any:
    """Axes without a frame, measured in pixels."""
    ax = svg.axes(height=height)
    ax.set_position((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, svg.WIDTH)
    ax.set_ylim(0, height)
    return ax


def _ruler(ax: Any, k: int, x: Any, y: float, critical: float) -> None:
    ax.plot([x(k), x(1)], [y, y], color=svg.MUTED, linewidth=1)
    step = math.ceil(18 * (k - 1) / (x(1) - x(k)))  # a number needs 18 px
    for rank in range(1, k + 1, step):
        ax.plot([x(rank)] * 2, [y, y + 4], color=svg.MUTED, linewidth=1)
        ax.text(x(rank), y + 7, str(rank), ha="center", va="bottom")
    # From rank 1 to the left; longer than the ruler only where no two can differ.
    left = x(min(1 + critical, float(k)))
    ax.plot([left, x(1)], [y + 27] * 2, color=svg.INK, linewidth=1.6)
    for end in (left, x(1)):
        ax.plot([end, end], [y + 24, y + 30], color=svg.INK, linewidth=1.6)
    more = "" if 1 + critical <= k else "more than the ruler: "
    text = f"critical difference {more}{critical:.2f}"
    ax.text(x(1), y + 33, text, ha="right", va="bottom", color=svg.INK)


def costs(points: Sequence[Point], metric: Metric, hues: Hues, name: str) -> list[Any]:
    """(title, chart) for each cost that is known: the line joins the adapters that no other
    beats."""
    fronts = pareto(points)
    made = []
    for cost, title in COSTS.items():
        known = [p for p in points if p.accuracy is not None and getattr(p, cost) is not None]
        if len(known) > 1:
            ax = _scatter(known, cost, fronts[cost], metric, hues)
            ax.set_xlabel(title)
            made.append(
                (title, svg.markup(ax, f"pareto-{cost}-{name}", f"{metric.label} by {title}"))
            )
    return made


def _scatter(
    points: Sequence[Point], cost: str, front: Sequence[str], metric: Metric, hues: Hues
) -> Any:
    ax = svg.axes(height=280)
    prices = [float(getattr(p, cost)) for p in points]
    positive = [price for price in prices if price > 0] or [1.0]
    zero = min(positive) / 4  # where nothing stands on a scale that has no 0
    places = {
        p.adapter: (price or zero, (p.accuracy or 0.0) * metric.scale)
        for p, price in zip(points, prices, strict=True)
    }
    ax.set_xscale("log")
    low = zero if 0 in prices else min(positive)
    spread = (max(positive) / low) ** 0.12 if max(positive) > low else 2
    ax.set_xlim(low / spread, max(positive) * spread)
    heights = [y for _, y in places.values()]
    room = 0.14 * (max(heights) - min(heights)) or 1.0
    ax.set_ylim(min(heights) - room, max(heights) + room)
    steps = sorted(places[name] for name in front)
    ax.step(*zip(*steps, strict=True), where="post", color=svg.MUTED, linewidth=1.2, zorder=1)
    for name, at in places.items():
        fill = svg.hue(hues[name]) if name in front else svg.PAPER
        face = {"color": svg.hue(hues[name]), "markerfacecolor": fill, "markeredgewidth": 1.4}
        shape = svg.marker(hues[name])
        ax.plot(*at, marker=shape, markersize=_size(shape), linestyle="none", **face)
    _log_axis(ax, min(positive), zero if 0 in prices else None)
    _name(ax, places, front)
    return ax


def _log_axis(ax: Any, least: float, zero: float | None) -> None:
    """Powers of ten, and a `0` of its own where something costs nothing."""
    low, high = ax.get_xlim()
    ticks = [t for t in LogLocator(numticks=6).tick_values(least, high) if low < t <= high]
    ticks = [t for t in ticks if t > (zero or 0) * 2]
    if zero is not None:
        ticks = [zero, *ticks]
        ax.axvline(zero * 2, color=svg.GRID, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    ax.set_xticks(ticks, ["0" if t == zero else _short(t) for t in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _name(ax: Any, places: Mapping[str, tuple[float, float]], front: Sequence[str]) -> None:
    """A name beside each dot where there is room; the best first, as the legend names the rest."""
    box = ax.get_position()
    wide = box.width * ax.figure.get_figwidth() * 72  # in the chart's pixels
    high = box.height * ax.figure.get_figheight() * 72
    at = {}
    for name, place in places.items():
        x, y = ax.transAxes.inverted().transform(ax.transData.transform(place))
        at[name] = (float(x) * wide, float(y) * high)
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
    steps = sorted(at[name] for name in front)
    for (x, y), (then, above) in pairwise(steps):  # the line that joins the front
        taken += [(x, y - 2, then, y + 2), (then - 2, y, then + 2, above)]
    for name in sorted(places, key=lambda n: (n not in front, -places[n][1])):
        size, (x, y) = LETTER * len(name), at[name]
        beside = [(8, -LINE / 2), (-8 - size, -LINE / 2)]
        beside += [(dx, dy) for dx in (-size / 2, -6, 6 - size) for dy in (7, -7 - LINE)]
        for dx, dy in beside:
            text = (x + dx, y + dy, x + dx + size, y + dy + LINE)
            inside = text[0] >= 0 and text[2] <= wide + 8 and text[1] >= 0 and text[3] <= high + 8
            if inside and not any(_overlap(text, other) for other in taken):
                taken.append(text)
                shift = {"xytext": (dx, dy + 3), "textcoords": "offset points"}
                ax.annotate(name, places[name], color=svg.INK, va="baseline", **shift)
                break


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def accuracies(
    tables: Sequence[Table], metric: Metric, hues: Hues, name: str, label: str
) -> Markup | None:
    """A line for each data set, with a dot for each adapter."""
    mine = [t for t in tables if t.ranked]
    if not mine:
        return None
    names = [t.block.data for t in mine]
    left = int(min(14 + LETTER * max(map(len, names)), 190))
    ax = svg.axes(height=26 * len(mine) + 46, left=left, top=6, bottom=40)
    ax.grid(visible=False)
    ax.grid(axis="x", color=svg.GRID, linewidth=1)
    for y, table in enumerate(reversed(mine)):
        values = [(row.accuracy or 0.0) * metric.scale for row in table.ranked]
        ax.plot([min(values), max(values)], [y, y], color=svg.GRID, linewidth=5, zorder=1)
        for row, value in reversed(list(zip(table.ranked, values, strict=True))):
            face = {"color": svg.hue(hues[row.adapter]), "markeredgecolor": svg.PAPER}
            shape = svg.marker(hues[row.adapter])
            ax.plot(
                value, y, marker=shape, markersize=_size(shape) + 1, markeredgewidth=0.7, **face
            )
    shown = [_short_name(n, left - 12) for n in reversed(names)]
    ax.set_yticks(range(len(shown)), shown, color=svg.INK)
    ax.set_ylim(-0.7, len(mine) - 0.3)
    ax.margins(x=0.04)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.set_xlabel(f"{label}, %" if metric.is_share else label)
    return svg.markup(ax, f"accuracies-{name}", f"{label} by data set, {name}")
