"""Maps before and after an adaptation, and learned vectors beside chance, drawn.

Flows in: places on a map with labels, or the nearest word of each vector with its null. Flows out:
inline SVG in the page's colours. All of it is drawn inside `svg.style()`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipelines.explain.projection import Floats, Ints
from pipelines.pages import svg

DOTS = svg.MARKERS.replace("D", "")  # the diamond is a text's
GLYPHS = svg.GLYPHS.replace("◆", "")
CLASSES = svg.HUES * len(DOTS)  # what colour and shape can tell apart; further ones are grey
SIDE = 430  # pixels, of a map
LETTER, LINE = 6.2, 13  # pixels: a mean letter of the page's 11 px text, and its height
LONGEST = 24  # letters of a name


@dataclass(frozen=True)
class Map:
    """Images and class texts on one map."""

    images: Floats  # (N, 2)
    texts: Floats  # (C, 2), the text of each class


def before_and_after(
    before: Map, after: Map, labels: Ints, classes: Sequence[str], name: str = "map"
) -> tuple[Markup, Markup]:
    """The two maps: images as dots of their class's colour, class texts as named diamonds.

    `labels` (N,) number the `classes`. The two have no common scale: each fills its square.
    """
    made = []
    for each, when in ((before, "before"), (after, "after")):
        label = f"map of {len(labels)} images and {len(classes)} class texts {when} adaptation"
        made.append(_scatter(each, labels, classes, f"{name}-{when}", label))
    return made[0], made[1]


def legend(classes: Sequence[str], text: tuple[str, str] = ("◆", "text of a class")) -> Markup:
    """The colour and shape of each class, for beside the maps, and the letter of a `text`."""
    item = Markup('<span><span class="glyph" style="color: {}">{}</span>{}</span>')
    shown = [
        item.format(f"var(--hue-{i % svg.HUES:02})", GLYPHS[i // svg.HUES], name)
        for i, name in enumerate(classes[:CLASSES])
    ]
    if len(classes) > CLASSES:
        rest = f"{len(classes) - CLASSES} other classes"
        shown.append(item.format("var(--muted)", GLYPHS[0], rest))
    shown.append(item.format("var(--ink)", *text))
    return Markup('<div class="legend">{}</div>').format(Markup("").join(shown))


def look(index: int) -> tuple[str, str]:
    """Colour and shape of class `index`."""
    if index >= CLASSES:
        return svg.MUTED, DOTS[0]
    return svg.hue(index), DOTS[index // svg.HUES]


def square(each: Map) -> Any:
    """Axes that hold all of a map."""
    ax = svg.axes(height=SIDE, width=SIDE, left=12, top=12, bottom=12)
    ax.axis("off")
    places = np.concatenate([each.images, each.texts])
    low, high = places.min(0), places.max(0)
    half = 0.54 * float((high - low).max()) or 1.0  # one scale for both axes, and some room
    for axis, middle in ((ax.set_xlim, (low + high)[0] / 2), (ax.set_ylim, (low + high)[1] / 2)):
        axis(middle - half, middle + half)
    return ax


def _scatter(each: Map, labels: Ints, classes: Sequence[str], name: str, label: str) -> Markup:
    ax = square(each)
    size = 5.0 if len(labels) <= 400 else 3.5
    for index in range(len(classes)):
        color, shape = look(index)
        mine = each.images[labels == index].T
        ax.plot(*mine, shape, color=color, markersize=size, alpha=0.6, markeredgewidth=0)
    for index, place in enumerate(each.texts):
        edge = {"color": look(index)[0], "markeredgecolor": svg.PAPER, "markersize": 9}
        ax.plot(*place, "D", **edge, markeredgewidth=1.2, zorder=3)
    middles = _pixels(ax, each.texts)
    taken: list[tuple[float, ...]] = [(x - 7, x + 7, y - 7, y + 7) for x, y in middles]
    for index in np.argsort(-middles[:, 1], kind="stable"):
        _name(ax, middles[index], _short(classes[index]), taken)
    return _markup(ax, name, label)


def _name(ax: Any, at: Floats, text: str, taken: list[tuple[float, ...]]) -> None:
    """The name beside its diamond, where neither another name nor another diamond stands.

    A name that finds no room is left out: its colour and shape are in the legend.
    """
    width = LETTER * len(text)
    boxes = []
    for step in range(12):  # beside the diamond, then farther up and down
        shift = (step + 1) // 2 * LINE * (-1) ** step
        for left in (at[0] + 9, at[0] - 9 - width):
            inside = left >= 2 and left + width <= SIDE - 2
            if inside and 0 <= at[1] + shift <= SIDE:
                boxes.append(
                    (left, left + width, at[1] + shift - LINE / 2, at[1] + shift + LINE / 2)
                )
    free = [box for box in boxes if not any(_meet(box, other) for other in taken)]
    if not free:
        return
    box = free[0]
    taken.append(box)
    middle = (box[2] + box[3]) / 2
    behind = {"facecolor": svg.PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    right = box[0] > at[0]
    edge = box[0] if right else box[1]
    if abs(middle - at[1]) > LINE:
        ax.plot(*_data(ax, [at, (edge, middle)]).T, color=svg.MUTED, linewidth=0.8, zorder=2.5)
    where = _data(ax, (edge, middle))
    look = {"color": svg.INK, "bbox": behind, "zorder": 4, "fontweight": "bold"}
    ax.text(*where, text, ha="left" if right else "right", va="center", **look)


def _pixels(ax: Any, places: Any) -> Floats:
    """Places on the map in the chart's own pixels, of which an inch has 72."""
    return np.asarray(ax.transData.transform(places) * 72 / ax.figure.dpi)


def _data(ax: Any, pixels: Any) -> Floats:
    return np.asarray(ax.transData.inverted().transform(np.asarray(pixels) * ax.figure.dpi / 72))


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    apart = one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
    return not apart


@dataclass(frozen=True)
class Row:
    """One learned vector: its nearest word, and how near chance comes."""

    word: str
    distance: float
    low: float  # 5 % quantile of the null
    high: float  # 95 %
    p: float  # corrected for the number of rows


def against_chance(rows: Sequence[Row], measure: str, name: str = "nearest-words") -> Markup:
    """A row a vector: its nearest word at its distance, over the band of random vectors.

    Filled: nearer than chance at p < 0.05. Hollow: not shown to be. The band: 5 to 95 % of chance.
    """
    words = [_short(row.word) for row in rows]
    left = int(40 + LETTER * max(map(len, words)))
    ax = svg.axes(height=22 * len(rows) + 50, left=left, top=6, bottom=44)
    ax.grid(visible=False)
    ax.grid(axis="x", color=svg.GRID, linewidth=1)
    for y, row in enumerate(reversed(rows)):
        ax.barh(y, row.high - row.low, left=row.low, height=0.62, color=svg.MUTED, alpha=0.28)
        fill = svg.hue(0) if row.p < 0.05 else svg.PAPER
        number = {"xycoords": ("figure points", "data"), "va": "center", "color": svg.MUTED}
        ax.annotate(str(len(rows) - y), (8, y), **number, annotation_clip=False)
        ax.plot(row.distance, y, "o", color=svg.hue(0), markerfacecolor=fill, markersize=6.5)
    ends = [e for row in rows for e in (row.distance, row.low, row.high)]
    room = 0.06 * (max(ends) - min(ends)) or 0.1
    ax.set_xlim(min(ends) - room, max(ends) + room)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_yticks(range(len(rows)), words[::-1], color=svg.INK)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.set_xlabel(f"{measure} distance to the nearest word")
    return _markup(ax, name, f"distance of {len(rows)} vectors to their nearest words, and chance")


def _short(name: str) -> str:
    """One line that fits; control characters, which XML refuses, become spaces."""
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _markup(ax: Any, name: str, label: str) -> Markup:
    with warnings.catch_warnings():
        # Matplotlib's own font lacks it; the text stays text, and the reader's browser has it.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        return svg.markup(ax, name, label)
