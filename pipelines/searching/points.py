"""What an adapter's trials try after the published recipes: points that were good on other data.

Flows in: the shipped portfolio. Flows out: `Search.hints`, settled when a study begins: a resumed
one has what it began with, whatever has become of where that was from. They are trials like others,
held against the same val, and the journal says of each where it is from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.console import say
from pipelines.searching.study import PORTFOLIO, Search, Start
from search_spaces.portfolio import portfolio
from trainables.adapters.registry import make_config
from trainables.config import Value, flatten
from trainables.errors import ConfigError
from trainables.files import read_json


def with_hints(search: Search, folder: Path, shipped: bool) -> Search:
    """`search` with its hints: those that the study in `folder` began with, or where none did, the
    portfolio's, if that is wanted."""
    if (folder / "study.json").exists():
        return begun(search, read_json(folder / "study.json"))
    hints = {}
    for adapter in search.adapters if shipped else ():
        hints[adapter], why = fitting(search, adapter, shipped_points(search, adapter))
        if why:
            reasons = "; ".join(dict.fromkeys(why))
            say(f"of `{adapter}`, {len(why)} points of the portfolio are left out: {reasons}.")
    return dataclasses.replace(search, hints=hints)


def begun(search: Search, about: Mapping[str, Any]) -> Search:
    """With the hints that `study.json` has; an older one has none."""
    noted = about.get("hints", {})
    hints = {name: [Start(**one) for one in noted.get(name, [])] for name in search.adapters}
    return dataclasses.replace(search, hints=hints)


def shipped_points(search: Search, adapter: str) -> Iterator[Start]:
    for point in portfolio(adapter, search.task):
        yield Start(point, PORTFOLIO)


def fitting(search: Search, adapter: str, points: Iterator[Start]) -> tuple[list[Start], list[str]]:
    """Of `points`, those that lie in what is searched, each once and none a recipe; and of the
    others, why not."""
    known = [dict(start.values) for start in search.starts(adapter)]
    found, why = [], []
    for point in points:
        try:
            config = whole(search, adapter, point.values)
        except ConfigError as error:
            why.append(str(error).removesuffix("."))
            continue
        if outside := search.outside(adapter, config):
            why.append(f"its {outside}")
            continue
        values = {key: config[key] for key in search.searched(adapter)}
        if values not in known:
            known.append(values)
            found.append(dataclasses.replace(point, values=values))
    return found, why


def whole(search: Search, adapter: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """All fields of the trial that a point would be."""
    return flatten(make_config(adapter, {"task": search.task, **values, **search.fixed}))
