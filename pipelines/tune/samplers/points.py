"""The points that an adapter's trials try after the published recipes: good ones on other data.

Flows in: earlier searches, the shipped portfolio. Flows out: `Search.hints`, settled when a study
begins: a resumed study keeps the hints that it began with, whatever became of their source. They
are trials like others, held against the same val, and the journal says where each comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.console import say
from pipelines.tune.samplers.priors import prior_points, read_priors
from pipelines.tune.study.search import PORTFOLIO, PRIOR, Search, Start
from search_spaces.portfolio import portfolio
from trainables.adapters.registry import make_config
from trainables.config import Task, Value, flatten
from trainables.errors import ConfigError
from trainables.files import read_json


def with_hints(search: Search, folder: Path, shipped: bool, priors: Sequence[Path] = ()) -> Search:
    """`search` with its hints. They are those that the study in `folder` began with, or in a new
    study the best points of `priors`, then the portfolio's points, if they are wanted."""
    if (folder / "study.json").exists():
        return begun(search, read_json(folder / "study.json"))
    earlier = read_priors(priors, search)
    hints = {}
    for adapter in search.adapters:
        points = prior_points(earlier, adapter)
        if earlier and not points:
            say(f"no trial of `{adapter}` ended in what `--prior` names.")
        points += shipped_points(adapter, search.task) if shipped else []
        hints[adapter] = fitting(search, adapter, points)
        if told := [one.source for one in hints[adapter] if one.origin == PRIOR]:
            say(f"`{adapter}` tries after its recipes: {', '.join(told)}.")
    return dataclasses.replace(search, hints=hints)


def begun(search: Search, about: Mapping[str, Any]) -> Search:
    """`search` with the hints in `study.json`; an older study has none."""
    noted = about.get("hints", {})
    hints = {name: [Start(**one) for one in noted.get(name, [])] for name in search.adapters}
    return dataclasses.replace(search, hints=hints)


def shipped_points(adapter: str, task: Task) -> list[Start]:
    points = enumerate(portfolio(adapter, task), 1)
    return [Start(point, PORTFOLIO, f"point {n} of the portfolio") for n, point in points]


def fitting(search: Search, adapter: str, points: Sequence[Start]) -> list[Start]:
    """Those of `points` that lie in what is searched, each once and none a recipe; for each of the
    others it is said why not."""
    known = [dict(start.values) for start in search.starts(adapter)]
    found, out = [], []  # what is outside, and why
    for point in points:
        try:
            config = whole(search, adapter, point.values)
            outside = search.outside(adapter, config)
        except ConfigError as error:
            outside = str(error).removesuffix(".")
        if outside:
            out.append(f"{point.source}, whose {outside}")
            continue
        values = {key: config[key] for key in search.searched(adapter)}
        if values not in known:
            known.append(values)
            found.append(dataclasses.replace(point, values=values))
    if out:
        say(f"`{adapter}` goes without {'; '.join(out)}.")
    return found


def whole(search: Search, adapter: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """All fields of the trial of a point."""
    own = {"task": search.task, "epochs": search.epochs, **search.fixed}
    return flatten(make_config(adapter, {**values, **own}))
