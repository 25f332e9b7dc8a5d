"""Points that were good on other data: what an adapter's trials try after its published recipe.

Pure data: `portfolio.json`, made by `python -m benchmarks.searchers.portfolio`, says from what.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("portfolio.json")


@cache
def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def portfolio(adapter: str, task: str) -> list[dict[str, Any]]:
    """The searched fields of each point, the most useful first; none where nothing was recorded."""
    points: list[dict[str, Any]] = _read()["points"].get(task, {}).get(adapter, [])
    return points
