"""Recipes: published settings of an adapter beside the published number.

Flows in: JSON files of format `cliptune-recipe-1`. Flows out: recipes whose every field was
checked, so that a mistake is found before hours of training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trainables.adapters.registry import make_config
from trainables.config import TrainConfig, Value, check
from trainables.errors import ConfigError, DataError, unknown
from trainables.files import read_json

FORMAT = "cliptune-recipe-1"
Protocol: TypeAlias = Literal["all", "base_to_new"]
MEASURES: dict[Protocol, tuple[str, ...]] = {
    "all": ("all",),
    "base_to_new": ("base", "new", "harmonic"),
}
NAMES = ("adapter", "dataset", "words", "backbone", "source", "tolerance_reason")


@dataclass(frozen=True)
class Recipe:
    """One adapter on one data set. Accuracies and tolerances are shares, not percent.

    `all`: trained and measured on all classes. `base_to_new`: trained on the first half of them,
    measured on that half and on the other, each among its own classes; `harmonic` is the harmonic
    mean of both (Zhou et al. 2022, CoCoOp).
    """

    name: str  # the file's
    adapter: str
    dataset: str  # the key of `--shards`
    words: str  # of `cliptune draw`
    backbone: str
    shots: int
    seeds: tuple[int, ...]  # each draws its own images and trains on them
    protocol: Protocol
    views: int  # of `cliptune encode`
    pixels: bool
    set: Mapping[str, Value]  # what differs from the adapter's own defaults, and the essentials
    expected: Mapping[str, float]  # by measure
    tolerance: float | Mapping[str, float]  # of the mean over seeds, either way
    tolerance_reason: str
    source: str  # where the numbers stand, and how they were read
    note: str = ""

    def __post_init__(self) -> None:
        for name in NAMES:
            value = getattr(self, name)
            check(isinstance(value, str) and bool(value.strip()), name, "some text", value)
        check(isinstance(self.note, str), "note", "text", self.note)
        if self.protocol not in MEASURES:
            raise ConfigError("`protocol`: " + unknown("choice", str(self.protocol), MEASURES))
        for name, least in (("shots", 0), ("views", 0)):
            value = getattr(self, name)
            check(_whole(value) and value >= least, name, f"a number of at least {least}", value)
        check(isinstance(self.pixels, bool), "pixels", "true or false", self.pixels)
        seeds = self.seeds
        distinct = bool(seeds) and all(map(_whole, seeds)) and len(set(seeds)) == len(seeds)
        check(distinct, "seeds", "a list of different numbers", list(seeds))
        check(isinstance(self.set, dict), "set", "a JSON object", self.set)
        for name in ("seed", "task"):
            check(name not in self.set, f"set.{name}", "left out: it is set here", self.set)
        self._check_numbers()
        self.config()

    def _check_numbers(self) -> None:
        named = isinstance(self.expected, dict) and bool(self.expected)
        check(named, "expected", "an object of accuracies", self.expected)
        for name, value in self.expected.items():
            if name not in MEASURES[self.protocol]:
                choices = MEASURES[self.protocol]
                raise ConfigError("`expected`: " + unknown("measure", name, choices))
            check(_share(value), f"expected.{name}", "in [0, 1]", value)
        given = self.tolerance
        if isinstance(given, dict):
            rule = f"for each of {', '.join(self.expected)}"
            check(given.keys() == self.expected.keys(), "tolerance", rule, given)
        for name in self.expected:
            allowed = self.allowed(name)
            check(_share(allowed) and allowed > 0, "tolerance", "in (0, 1]", allowed)

    def allowed(self, measure: str) -> float:
        """How far from the expected value still passes."""
        return self.tolerance[measure] if isinstance(self.tolerance, Mapping) else self.tolerance

    def config(self) -> TrainConfig:
        """The training run, without its seed."""
        return make_config(self.adapter, {"task": "classification", **self.set})


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _share(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= 1


def read_recipe(path: Path) -> Recipe:
    """The recipe in `path`; whatever breaks a rule is an error that names file and field."""
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise DataError(f"`{path}` is not a recipe of format {FORMAT}.")
    fields = {f.name: f for f in dataclasses.fields(Recipe) if f.name != "name"}
    for name in value:
        if name not in (*fields, "format"):
            raise ConfigError(f"`{path}`: " + unknown("field", name, fields))
    for name, item in fields.items():
        if name not in value and item.default is dataclasses.MISSING:
            raise ConfigError(f"`{path}` lacks the field `{name}`.")
    given: dict[str, Any] = {name: value[name] for name in value if name != "format"}
    seeds = given["seeds"]
    given["seeds"] = tuple(seeds) if isinstance(seeds, list) else (seeds,)
    try:
        return Recipe(path.stem, **given)
    except ConfigError as error:  # the rules are the fields'; the file is named here
        raise ConfigError(f"`{path}`: {error}") from None


def read_recipes(paths: Sequence[Path]) -> list[Recipe]:
    """All recipes, their names unlike."""
    recipes: dict[str, Recipe] = {}
    for path in paths:
        recipe = read_recipe(path)
        if recipe.name in recipes:
            raise ConfigError(f"`{path}`: another recipe is called `{recipe.name}` too.")
        recipes[recipe.name] = recipe
    return list(recipes.values())
