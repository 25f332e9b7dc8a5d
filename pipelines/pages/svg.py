"""Matplotlib figures as inline SVG that belongs to the page: its fonts, its colours, light or dark.

Flows in: a figure drawn in the colours below. Flows out: SVG markup in which those colours are CSS
variables and text is text. Equal figures give equal bytes.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
_ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "card"}
HUES = 9  # the page's style sheet has as many
MARKERS, GLYPHS = "os^Dv*P", "●■▲◆▼★✚"

WIDTH = 430  # CSS pixels at which a chart's 11 px text is 11 px
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a `$` in a name is a `$`
    "font.size": 11,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "text.color": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


def style() -> Any:
    """The context in which every chart is drawn, so that none depends on the user's settings."""
    return mpl.rc_context({**mpl.rcParamsDefault, "backend": mpl.rcParams["backend"], **STYLE})


def marker(index: int) -> str:
    """The shape of adapter `index`, for eyes that tell its colour from another with difficulty."""
    return MARKERS[index % len(MARKERS)] if index >= 0 else "o"


def glyph(index: int) -> str:
    """The same shape as a letter."""
    return GLYPHS[index % len(GLYPHS)] if index >= 0 else "●"


def hue(index: int) -> str:
    """The stand-in for the colour of adapter `index`; -1 is the baseline's grey."""
    return f"#0500{index % HUES:02x}" if index >= 0 else MUTED


def axes(height: int, width: int = WIDTH, left: int = 38, top: int = 10, bottom: int = 32) -> Any:
    """Axes with what a reader needs alone: light horizontal lines and small numbers."""
    figure = Figure(figsize=(width / 72, height / 72))
    sides = (left / width, bottom / height, (width - left - 12) / width)
    ax = figure.add_axes((*sides, (height - top - bottom) / height))
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(axis="y", color=GRID, linewidth=1)
    return ax


def markup(ax: Any, name: str, label: str) -> Markup:
    """The figure of `ax`; `name` is unique on the page, `label` is what a screen reader says."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}):
        ax.figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    box = re.search(r'viewBox="([^"]+)"', text)
    body = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]
    for stand_in, role in _ROLES.items():
        body = body.replace(stand_in, f"var(--{role})")
    body = re.sub(r"#0500(\d\d)", r"var(--hue-\1)", body)
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)(\w+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><")
    head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(label)}">'
    return Markup(f"{head}{body}</svg>")  # Matplotlib escapes the text it draws
