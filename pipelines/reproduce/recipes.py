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
from trainables.config import TrainConfig, Value, check, to_json
from trainables.errors import ConfigError, DataError, unknown
from trainables.files import read_json

FORMAT = "cliptune-recipe-1"
Protocol: TypeAlias = Literal["all", "base_to_new", "captions"]
MEASURES: dict[Protocol, tuple[str, ...]] = {
    "all": ("all",),
    "base_to_new": ("base", "new", "harmonic"),
    "captions": ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d"),
}
NAMES = ("adapter", "dataset", "backbone", "source", "tolerance_reason")
MOST = {"cider_d": 10}  # the highest value of a measure that is no share


@dataclass(frozen=True)
class Recipe:
    """One adapter on one data set. Values and tolerances are shares, not percent; papers print
    CIDEr (`cider_d`) times 100, too.

    `all`: trained and measured on all classes. `base_to_new`: trained on the first half of them,
    measured on that half and on the other, each among its own classes; `harmonic` is the harmonic
    mean of both (Zhou et al. 2022, CoCoOp). `captions`: trained on all captions of train, one
    caption said for each image of test; nothing is drawn, so there are no shots and no words.
    """

    name: str  # the file's
    adapter: str
    dataset: str  # the key of `--shards`
    backbone: str
    seeds: tuple[int, ...]  # each draws its own images, if any, and trains on them
    protocol: Protocol
    views: int  # of `cliptune encode`
    pixels: bool
    set: Mapping[str, Value]  # what differs from the adapter's own defaults, and the essentials
    expected: Mapping[str, float]  # by measure
    tolerance: float | Mapping[str, float]  # of the mean over seeds, either way
    tolerance_reason: str
    source: str  # where the numbers stand, and how they were read
    note: str = ""
    words: str | None = None  # of `cliptune draw`; not of captions
    shots: int | None = None  # not of captions
    images: int | None = None  # captions: of test, behind the published numbers

    def __post_init__(self) -> None:
        for name in NAMES:
            value = getattr(self, name)
            check(isinstance(value, str) and bool(value.strip()), name, "some text", value)
        check(isinstance(self.note, str), "note", "text", self.note)
        if self.protocol not in MEASURES:
            raise ConfigError("`protocol`: " + unknown("choice", str(self.protocol), MEASURES))
        check(_whole(self.views) and self.views >= 0, "views", "a number of at least 0", self.views)
        self._check_data()
        check(isinstance(self.pixels, bool), "pixels", "true or false", self.pixels)
        seeds = self.seeds
        distinct = bool(seeds) and all(map(_whole, seeds)) and len(set(seeds)) == len(seeds)
        check(distinct, "seeds", "a list of different numbers", list(seeds))
        check(isinstance(self.set, dict), "set", "a JSON object", self.set)
        for name, where in (
            ("seed", "it is set here"),
            ("task", "it is set here"),
            ("adapter.lm_revision", "`--lm-revision` gives it"),
        ):
            check(name not in self.set, f"set.{name}", f"left out: {where}", self.set)
        self._check_numbers()
        check(self.lm != "tiny", "set.adapter.lm", "the published language model", self.lm)

    def _check_data(self) -> None:
        """Check the fields about the draw of the classes, or about the captioned images."""
        if self.protocol == "captions":
            for name in ("words", "shots"):
                value = getattr(self, name)
                check(value is None, name, "left out: nothing is drawn for captions", value)
            known = self.images is not None and _whole(self.images) and self.images >= 1
            check(known, "images", "the number of test images, at least 1", self.images)
            return
        words, shots = self.words, self.shots
        check(isinstance(words, str) and bool(words.strip()), "words", "some text", words)
        drawn = shots is not None and _whole(shots) and shots >= 0
        check(drawn, "shots", "a number of at least 0", shots)
        check(self.images is None, "images", "left out: it is of captions", self.images)

    def _check_numbers(self) -> None:
        named = isinstance(self.expected, dict) and bool(self.expected)
        check(named, "expected", "an object of numbers by measure", self.expected)
        for name, value in self.expected.items():
            if name not in MEASURES[self.protocol]:
                choices = MEASURES[self.protocol]
                raise ConfigError("`expected`: " + unknown("measure", name, choices))
            most = MOST.get(name, 1)
            check(_within(value, most), f"expected.{name}", f"in [0, {most}]", value)
        given = self.tolerance
        if isinstance(given, dict):
            rule = f"for each of {', '.join(self.expected)}"
            check(given.keys() == self.expected.keys(), "tolerance", rule, given)
        for name in self.expected:
            allowed = self.allowed(name)
            check(_within(allowed) and allowed > 0, "tolerance", "in (0, 1]", allowed)

    def allowed(self, measure: str) -> float:
        """The distance from the expected value that still passes."""
        return self.tolerance[measure] if isinstance(self.tolerance, Mapping) else self.tolerance

    def config(self) -> TrainConfig:
        """The configuration of the training run, without its seed."""
        task = "captioning" if self.protocol == "captions" else "classification"
        return make_config(self.adapter, {"task": task, **self.set})

    @property
    def lm(self) -> str | None:
        """The language model that the recipe names; None: its adapter has none."""
        value = to_json(self.config()).get("adapter.lm")
        return None if value is None else str(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _within(value: object, most: float = 1) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value <= most


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
    """All recipes; their names must differ."""
    recipes: dict[str, Recipe] = {}
    for path in paths:
        recipe = read_recipe(path)
        if recipe.name in recipes:
            raise ConfigError(f"`{path}`: another recipe is called `{recipe.name}` too.")
        recipes[recipe.name] = recipe
    return list(recipes.values())
