"""The schedule of the chosen trial, drawn: each value by epoch, and whose weights they were.

Flows in: `schedule.json` of a search by a population. Flows out: inline SVG, one chart a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator, NullFormatter

from pipelines.pages import svg
from trainables.files import read_json


def schedules(run: Path) -> list[tuple[str, Markup]]:
    """A chart for each field that changed; none where nothing did."""
    path = run / "schedule.json"
    found = read_json(path) if path.exists() else {"epochs": []}
    fields = dict.fromkeys(name for change in found["epochs"] for name in change["values"])
    return [(field, _chart(field, found)) for field in fields]


def _chart(field: str, found: Mapping[str, Any]) -> Markup:
    last = int(found["config"]["epochs"])
    value, values = found["config"].get(field), {}
    changes = {change["from_epoch"]: change["values"] for change in found["epochs"]}
    for epoch in range(1, last + 1):
        value = changes.get(epoch, {}).get(field, value)
        if value is not None:  # a backbone's own temperature, until it changed
            values[epoch] = value
    ax = svg.axes(height=190, left=52, top=30)
    ax.plot(
        *zip(*values.items(), strict=True),
        color=svg.INK,
        linewidth=1.6,
        marker="o",
        markersize=4,
        drawstyle="steps-mid",
    )
    if min(values.values()) > 0 and max(values.values()) > 5 * min(values.values()):
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # a `$` would be a `$`
    _lineage(ax, found["lineage"], last)
    ax.set_xlim(0.5, last + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_xlabel("epoch")
    return svg.markup(ax, f"schedule-{field}", f"{field} by epoch, along the lineage")


def _lineage(ax: Any, lineage: list[Mapping[str, int]], last: int) -> None:
    """The trial whose weights they were, above; a line where another trial took them over."""
    ends = [one["from_epoch"] for one in lineage[1:]] + [last + 1]
    for one, end in zip(lineage, ends, strict=True):
        start = one["from_epoch"]
        if start > 1:
            ax.axvline(start - 0.5, color=svg.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        place = {"ha": "center", "va": "bottom", "transform": ax.get_xaxis_transform()}
        ax.text((start + end - 1) / 2, 1.03, f"trial {one['member']}", color=svg.INK, **place)
