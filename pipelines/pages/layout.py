"""The templates of all pages, with the functions that they may call.

Flows in: whether text is escaped, as in HTML, or not, as in Markdown. Flows out: an `Environment`
in which nothing that a user wrote becomes markup.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.pages import numbers, svg
from pipelines.pages.intervals import between, chance, verdict
from pipelines.pages.numbers import Metric

TEMPLATES = Path(__file__).parent / "templates"


def environment(escape: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals.update(Metric=Metric, between=between, verdict=verdict)
    made.globals.update(chance=chance, glyph=svg.glyph, shades=svg.HUES)
    for use in (
        numbers.count,
        numbers.duration,
        numbers.setting,
        numbers.probability,
        numbers.share,
        numbers.number,
    ):
        made.filters[use.__name__] = use
    made.filters["cell"] = cell
    made.filters["code"] = code
    made.filters["rank"] = rank
    return made


def cell(value: object) -> str:
    """`value` as inert text of a Markdown table."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|!~#$])", r"\\\1", text)


def code(value: object) -> str:
    """`value` as a Markdown code span, in which only its own end and a table's bar need care."""
    return "`" + " ".join(str(value).split()).replace("`", "'").replace("|", r"\|") + "`"


def rank(pictures: list[Any]) -> str:
    """Where the right picture stands among the five."""
    return next((f"rank {i}" for i, p in enumerate(pictures, 1) if p.hit), "not in the top 5")
