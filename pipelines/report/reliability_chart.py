"""The reliability diagram drawn: how often answers are right, by how sure they are.

Flows in: a calibrated row. Flows out: inline SVG.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from pipelines.pages import svg
from pipelines.pages.numbers import number, share
from pipelines.report.calibration import Believed
from pipelines.report.probabilities import Calibrated, Section
from pipelines.report.result import Row

BEFORE, AFTER = 4, 8  # places in the palette that few adapters reach
LEAST, MOST = 5.0, 17.0  # a dot's diameter, of no image and of most
RING = 2.5  # a ring is larger: where nothing changed, the dot stands in it


def diagrams(believed: Section | None) -> list[tuple[Row, Markup]]:
    """The diagrams of the chosen row and the baseline."""
    return [(one.row, reliability(one)) for one in believed.shown] if believed else []


def reliability(one: Calibrated) -> Markup:
    """Accuracy against confidence, a dot a bin, its area by its images; before is hollow."""
    ax = svg.axes(height=380, bottom=40)
    ax.plot([0, 100], [0, 100], color=svg.MUTED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    text = {"color": svg.MUTED, "zorder": 1}
    ax.text(4, 97, "not sure enough", va="top", **text)
    ax.text(98, 3, "too sure", ha="right", **text)
    before, after = one.found.before, one.found.after
    most = max(b.images for b in [*before.bins, *after.bins])
    _dots(ax, after, most, svg.hue(AFTER), svg.hue(AFTER))
    _dots(ax, before, most, svg.hue(BEFORE), "none")
    ax.set_xlim(-2, 104)
    ax.set_ylim(-4, 104)
    ax.set_xlabel("probability of the likeliest class, %")
    return svg.markup(ax, f"reliability-{one.row.name}", _said(one))


def _dots(ax: Any, found: Believed, most: int, color: str, fill: str) -> None:
    for each in found.bins:
        size = LEAST + (MOST - LEAST) * (each.images / most) ** 0.5
        size += RING if fill == "none" else 0
        at = (100 * each.confidence, 100 * each.accuracy)
        ax.plot(
            *at,
            **{"marker": "o", "color": color, "markerfacecolor": fill, "markersize": size},
            **{"markeredgewidth": 1.5 if fill == "none" else 0, "alpha": 0.85, "clip_on": False},
        )


def _said(one: Calibrated) -> str:
    words = [
        f"{time} the temperature, {share(found.confidence)} sure on average and right in "
        f"{share(found.accuracy)}, ECE {number(found.ece, 3)}"
        for time, found in (("before", one.found.before), ("after", one.found.after))
    ]
    return f"accuracy by probability on test, {one.row.name}: {'; '.join(words)}"
