"""Regret against epochs spent, drawn: `searchers.svg`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLORS = ("#8a8a8a", "#b07aa1", "#59a14f", "#f28e2b", "#9ecae9", "#4c9be8", "#1f5fa8")


def draw(stored: dict[str, Any], path: Path) -> None:
    """Both splits; a line a searcher, with its interval."""
    style = {"svg.hashsalt": "searchers", "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context({**mpl.rcParamsDefault, "backend": mpl.rcParams["backend"], **style}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for ax, split in zip(figure.subplots(1, 2), ("val", "test"), strict=True):
            for color, (label, rows) in zip(COLORS, stored["regret"].items(), strict=True):
                spent = [row["trials"] for row in rows]
                middle, low, high = zip(*(row[split] for row in rows), strict=True)
                ax.plot(spent, middle, color=color, label=label, marker="o", markersize=3)
                ax.fill_between(spent, low, high, color=color, alpha=0.12, linewidth=0)
            ax.set_xscale("log", base=2)
            ticks = [1, 2, 4, 8, 16, 32, 64]
            ax.set_xticks(ticks, [str(one) for one in ticks])
            ax.set_ylim(bottom=0)
            ax.set_xlabel("epochs spent, in trials' worth")
            ax.set_ylabel(f"median regret on {split}, points")
            for side in ("top", "right"):
                ax.spines[side].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(path, format="svg", metadata=nothing)
