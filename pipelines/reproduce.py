"""Published numbers, run again: draw, encode, train and evaluate by recipe, then pass or fail.

Flows in: recipes, the shards of their data sets, real weights. Flows out: reproduce.json and
reproduce.md. The exit code is 1 unless every number is reproduced.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.errors import ConfigError, DataError, unknown
from trainables.files import now, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from pipelines.reproducing.plan import Measured, Plan
    from pipelines.reproducing.recipes import Recipe

FORMAT = "cliptune-reproduce-1"


@dataclass(frozen=True)
class Args:
    """What to run again, and on what."""

    recipe: tuple[Path, ...]
    """Recipes, such as recipes/coop-*.json."""
    shards: tuple[str, ...]
    """For each data set, its name in the recipes and its folder: `eurosat=DIR pets=DIR`."""
    backbone: str | None = None
    """A folder or Hub id instead of the recipes' own; it must hold the same weights."""
    revision: str | None = None
    """The commit (40 hex digits) of a Hub id."""
    seed: tuple[int, ...] = ()
    """Seeds instead of the recipes' own: fewer are quicker, and not what was published."""
    out: Path = Path("runs/reproduce")
    """Folder for draws, features, runs and the tables."""


def run(args: Args) -> None:
    from pipelines import console
    from pipelines.hold import hold
    from pipelines.reproducing.plan import Plan
    from pipelines.reproducing.verdicts import PASS, table

    recipes, shards = _check(args)
    plan = Plan(args.out.absolute(), shards, args.backbone, args.revision)
    with hold(plan.out):
        about = _claim(plan, args)
        rows: list[dict[str, Any]] = []
        for recipe in recipes:
            rows += _rows(plan, recipe, args.seed or recipe.seeds)
            _write(plan.out, about, rows)  # what is known so far; a long night may end early
    console.say("")
    for line in table(rows):
        console.say(line)
    passed = sum(row["verdict"] == PASS for row in rows)
    console.say(f"{passed} of {len(rows)} published numbers reproduced.")
    for name in ("reproduce.json", "reproduce.md"):
        console.say(f"wrote {args.out / name}")
    if passed < len(rows):
        sys.exit(1)


def _check(args: Args) -> tuple[list[Recipe], dict[str, Path]]:
    """All that can be wrong with what was asked, before any work."""
    from pipelines.drawing.words import read_words
    from pipelines.reproducing.recipes import read_recipes
    from trainables.model_folder import locate
    from trainables.shards import SPLITS, ShardSet

    recipes, folders = read_recipes(args.recipe), _folders(args.shards)
    if len(set(args.seed)) < len(args.seed):
        raise ConfigError(f"`--seed` must be different numbers, got {list(args.seed)}.")
    for recipe in recipes:
        if recipe.dataset not in folders:
            raise ConfigError(
                f"recipe `{recipe.name}` needs `--shards {recipe.dataset}=DIR`; "
                + unknown("data set", recipe.dataset, folders)
            )
        read_words(recipe.words)
        shards = ShardSet.open(folders[recipe.dataset])
        for split in SPLITS:
            if split not in shards.splits:
                raise DataError(f"`{shards.folder}` has no {split} split, recipes need it.")
    for name in {args.backbone or recipe.backbone for recipe in recipes}:
        locate(name, args.revision)
    return recipes, folders


def _folders(words: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"`--shards` takes `name=DIR`, got {word!r}.")
        if name in folders:
            raise ConfigError(f"`--shards` names `{name}` twice.")
        folders[name] = Path(folder).absolute()
    return folders


def _claim(plan: Plan, args: Args) -> dict[str, str | None]:
    """Write down the backbone, or check that this folder's runs are of the same."""
    own = args.backbone
    if own is not None and Path(own).is_dir():
        own = str(Path(own).resolve())
    about = {"backbone": own or "the recipes' own", "revision": args.revision}
    path = plan.out / "backbone.json"
    found = read_json(path) if path.exists() else about
    if found != about:
        raise DataError(
            f"`{plan.out}` holds runs on backbone {found['backbone']} at {found['revision']}, "
            f"asked is {about['backbone']} at {about['revision']}. Give another `--out`."
        )
    write_json(path, about)
    return about


def _rows(plan: Plan, recipe: Recipe, seeds: Sequence[int]) -> list[dict[str, Any]]:
    from pipelines.reproducing.plan import NotRun
    from pipelines.reproducing.verdicts import rows_of

    runs: dict[int, Measured] = {}
    reasons: dict[int, str] = {}
    for seed in seeds:
        try:
            runs[seed] = plan.run(recipe, seed)
        except NotRun as error:  # the other seeds and recipes can still be run
            reasons[seed] = str(error)
    return rows_of(recipe, runs, reasons)


def _write(out: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from pipelines.measuring.provenance import hardware, versions
    from pipelines.reproducing.verdicts import markdown

    made = {"created": now(), "versions": versions(), "hardware": hardware()}
    write_json(out / "reproduce.json", {"format": FORMAT, **about, **made, "rows": rows})
    write_bytes(out / "reproduce.md", markdown(rows, about).encode())


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("reproduce")
