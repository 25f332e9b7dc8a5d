"""The shipped portfolio: `python -m benchmarks.searchers.portfolio`.

Flows in: the recorded surfaces. Flows out: `search_spaces/portfolio.json`: for each adapter the
points that together leave the least regret on val of the data sets at hand, the published recipe
being tried anyway; from what they are; and, for each data set, what points chosen without it leave
there, beside as many at random.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.searchers.surfaces import FOLDER, Surface, whole
from pipelines.tune.study.search import PORTFOLIO, Start
from search_spaces.common import Space
from search_spaces.notation import contains
from search_spaces.portfolio import FILE
from trainables.config import Value
from trainables.files import write_json

COUNT = 4  # points of an adapter
MANY = 50  # configurations, of which a choice is worth the name
DECIDES = {"val/accuracy", "val/calibrated_likelihood", "val/t2i_r1", "val/t2i_mrr"}
DRAWS = 200  # of as many points at random
Array: TypeAlias = NDArray[Any]
Point: TypeAlias = dict[str, Value]


def data_of(surface: Surface) -> str:
    """The data set, of whose draws there may be several: `eurosat` of `eurosat-16-1`."""
    return str(surface.about["data"]).partition("-")[0]


def portfolio(surfaces: Sequence[Surface], count: int = COUNT) -> list[Point]:
    """The points for an adapter, of which there is a surface or more: greedily, each time the one
    that leaves the least regret beside those before it, as the mean over data sets. When none
    leaves less, those before it count no more, so that what is good everywhere comes twice."""
    recipes, points = surfaces[0].recipes, candidates(surfaces)
    left = np.stack([regret(one, [*recipes, *points]) for one in surfaces], axis=1)  # (C, S)
    sets = [data_of(one) for one in surfaces]
    weight = np.array([1 / sets.count(name) for name in sets])
    first = left[: len(recipes)].min(0)
    left, have, taken = left[len(recipes) :], first, list[int]()
    while len(taken) < min(count, len(points)):
        free = [place for place in range(len(points)) if place not in taken]
        if (left[free] >= have).all():
            have = first
        sums = np.minimum(left[free], have) @ weight
        taken.append(free[int(sums.argmin())])
        have = np.minimum(have, left[taken[-1]])
    return [points[place] for place in taken]


def candidates(surfaces: Sequence[Surface]) -> list[Point]:
    """What was recorded on any of them, each once."""
    recipes = surfaces[0].recipes
    every = {json.dumps(one, sort_keys=True): one for each in surfaces for one in each.configs}
    return [one for one in every.values() if one not in recipes]


def regret(surface: Surface, points: Sequence[Mapping[str, Value]]) -> Array:
    """What is lost with each point against the best that was recorded: (points,). 1 is what the
    median configuration loses. It is the mean over what decides on val (accuracy and calibrated
    likelihood, or recall and reciprocal rank), since over few images many tie in the first."""
    rows = [surface.nearest(one) for one in points]
    lost = []
    for name in DECIDES & surface.curves[0].keys():
        curves = [whole(one[name], surface.about["epochs"]) for one in surface.curves]
        best = np.array([one.max() for one in curves])
        lost.append((best.max() - best[rows]) / (best.max() - np.median(best) or 1.0))
    return np.mean(lost, axis=0)


@functools.cache
def recorded() -> dict[tuple[str, str], list[Surface]]:
    """By task and adapter, all surfaces that a choice can be made from."""
    found: dict[tuple[str, str], list[Surface]] = defaultdict(list)
    for path in sorted(FOLDER.glob("*.parquet")):
        one = Surface.load(path)
        if len(one.configs) > MANY:  # of fewer, a search tries all anyway
            found[one.about["task"], one.about["adapter"]].append(one)
    return found


@functools.cache
def of_other_data(task: str, adapter: str, name: str) -> list[Start]:
    """What the portfolio would be without the data set `name`, as hints of a search there."""
    others = [one for one in recorded().get((task, adapter), []) if data_of(one) != name]
    return [Start(one, PORTFOLIO) for one in portfolio(others)] if others else []


def held_out(surfaces: Sequence[Surface]) -> dict[str, dict[str, list[float]]]:
    """By data set, the points that are lost on val against the best that was recorded, after the
    recipe and 0, 1, 2 ... points chosen on the other data sets; and after as many at random."""
    found = {}
    for name in sorted({data_of(one) for one in surfaces}):
        here = [one for one in surfaces if data_of(one) == name]
        others = [one for one in surfaces if data_of(one) != name]
        chosen = [*here[0].recipes, *portfolio(others)]
        start = len(chosen) - COUNT
        ours = [running_best(one, [chosen])[:, start - 1 :] for one in here]
        drawn = [running_best(one, at_random(one, start))[:, start - 1 :] for one in here]
        found[name] = {
            "portfolio": [round(float(one), 1) for one in np.concatenate(ours).mean(0)],
            "random": [round(float(one), 1) for one in np.concatenate(drawn).mean(0)],
        }
    return found


def at_random(surface: Surface, start: int) -> list[list[Point]]:
    """The recipes, then recorded configurations: `DRAWS` times."""
    chance = np.random.default_rng(0)
    recipes, others = surface.configs[:start], surface.configs[start:]
    return [
        [*recipes, *(others[n] for n in chance.integers(0, len(others), COUNT))]
        for _ in range(DRAWS)
    ]


def running_best(surface: Surface, lists: Sequence[Sequence[Point]]) -> Array:
    """100 x what the best of the first 1, 2, ... points of each list leaves: (lists, points)."""
    metric, epochs = surface.about["metric"], surface.about["epochs"]
    best = np.array([whole(one[metric], epochs).max() for one in surface.curves])
    rows = np.array([[surface.nearest(one) for one in points] for points in lists])
    return 100 * (best.max() - np.maximum.accumulate(best[rows], axis=1))


def rounded(point: Point, space: Space) -> Point:
    """Three digits are as good, and can be read."""
    short = {n: float(f"{v:.3g}") if isinstance(v, float) else v for n, v in point.items()}
    return {name: v if contains(space[name], v) else point[name] for name, v in short.items()}


def main() -> None:
    points: dict[str, Any] = defaultdict(dict)
    left: dict[str, Any] = defaultdict(dict)
    for (task, adapter), surfaces in recorded().items():
        points[task][adapter] = [rounded(one, surfaces[0].space) for one in portfolio(surfaces)]
        left[task][adapter] = held_out(surfaces)
        print(f"{adapter}, {task}: val points lost after the recipe and 0 to {COUNT} more")
        for name, each in left[task][adapter].items():
            for kind, lost in each.items():
                print(f"  {name:9} {kind:9}", *(f"{one:5.1f}" for one in lost))
    write_json(
        FILE,
        {
            "made_by": "python -m benchmarks.searchers.portfolio",
            "rule": " ".join((portfolio.__doc__ or "").split()),
            "surfaces": [about(one) for surfaces in recorded().values() for one in surfaces],
            "left_on_held_out_data": left,
            "points": points,
        },
    )


def about(surface: Surface) -> str:
    """What was recorded, in a line."""
    said = surface.about
    shown = f"{said['data']}.{said['adapter']}: {len(surface.configs)} configurations"
    return f"{shown}, {said['images']['val']} val images, {said['backbone']['name']}"


if __name__ == "__main__":
    main()
