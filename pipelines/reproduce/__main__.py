"""Published numbers, run again: draw, encode, train and evaluate by recipe, then pass or fail.

Flows in: recipes, the shards of their data sets, real weights. Flows out: reproduce.json and
reproduce.md. The exit code is 1 unless every number is reproduced.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pipelines.ranges import Range, check_ranges
from trainables.errors import ConfigError, DataError, unknown
from trainables.files import now, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from pipelines.reproduce.plan import Measured, Plan
    from pipelines.reproduce.recipes import Recipe

FORMAT = "cliptune-reproduce-2"


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
    lm: str | None = None
    """For recipes of captions: a folder or Hub id instead of their own language model."""
    lm_revision: str | None = None
    """The commit (40 hex digits) of a language model on the Hub."""
    seed: Annotated[tuple[int, ...], Range(0)] = ()
    """Seeds instead of the recipes' own: fewer are quicker, and not what was published."""
    out: Path = Path("runs/reproduce")
    """Folder for draws, features, runs and the tables."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    from pipelines import console
    from pipelines.hold import hold
    from pipelines.reproduce.plan import Plan
    from pipelines.reproduce.verdicts import PASS, table

    recipes, shards = _check(args)
    lm = str(Path(args.lm).absolute()) if args.lm and Path(args.lm).is_dir() else args.lm
    plan = Plan(args.out.absolute(), shards, args.backbone, args.revision, lm, args.lm_revision)
    with hold(plan.out, "backbone.json"):
        about = _claim(plan, any(recipe.lm for recipe in recipes))
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
    """Raise for all that can be wrong with the flags, before any work."""
    from pipelines.reproduce.recipes import read_recipes

    recipes, folders = read_recipes(args.recipe), _folders(args.shards)
    if len(set(args.seed)) < len(args.seed):
        raise ConfigError(f"`--seed` must be different numbers, got {list(args.seed)}.")
    for recipe in recipes:
        if recipe.dataset not in folders:
            raise ConfigError(
                f"recipe `{recipe.name}` needs `--shards {recipe.dataset}=DIR`; "
                + unknown("data set", recipe.dataset, folders)
            )
        _check_data(recipe, folders[recipe.dataset])
    _check_models(args, recipes)
    return recipes, folders


def _check_data(recipe: Recipe, folder: Path) -> None:
    from pipelines.draw.class_names import read_words
    from trainables.data.shards import SPLITS, ShardSet

    shards = ShardSet.open(folder)
    for split in SPLITS:
        if split not in shards.splits:
            raise DataError(f"`{shards.folder}` has no {split} split, recipes need it.")
    if recipe.words is not None:
        read_words(recipe.words)
    if recipe.images is None:
        return
    for split in SPLITS:
        if not shards.splits[split]["captions"]:
            raise DataError(
                f"`{shards.folder}` has no captions in its {split} split, recipe `{recipe.name}` "
                "needs them."
            )
    images = shards.splits["test"]["images"]
    if images != recipe.images:
        raise DataError(
            f"`{shards.folder}` must have the {recipe.images:,} test images that the numbers of "
            f"recipe `{recipe.name}` are of, got {images:,}: metrics of captions depend on them."
        )


def _check_models(args: Args, recipes: Sequence[Recipe]) -> None:
    from trainables.models.model_folder import existing, locate

    speakers = {recipe.lm for recipe in recipes if recipe.lm}
    if not speakers and (args.lm or args.lm_revision):
        raise ConfigError(
            "`--lm` and `--lm-revision` must be for recipes with a language model, got none."
        )
    backbones = {recipe.backbone for recipe in recipes}
    for flag, commit, own, revision, names in (
        ("--backbone", "--revision", args.backbone, args.revision, backbones),
        ("--lm", "--lm-revision", args.lm, args.lm_revision, speakers),
    ):
        if len(names) > 1 and (own or revision):
            several = ", ".join(f"`{name}`" for name in sorted(names))
            raise ConfigError(
                f"`{flag}` and `{commit}` must be for recipes of one model, got recipes of "
                f"{several}: run them apart, each with an own `--out`."
            )
        for name in [own] if own else sorted(names):
            existing(locate(name, revision, commit), "config.json")


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


def _claim(plan: Plan, speaks: bool) -> dict[str, str | None]:
    """Write down the models, or check that this folder's runs are of the same ones."""
    about = {"backbone": _own(plan.backbone), "revision": plan.revision}
    if speaks:
        about |= {"lm": _own(plan.lm), "lm_revision": plan.lm_revision}
    path = plan.out / "backbone.json"
    found = read_json(path) if path.exists() else {}
    for kind, name, commit in (
        ("backbone", "backbone", "revision"),
        ("language model", "lm", "lm_revision"),
    ):
        keys = [key for key in (name, commit) if key in found and key in about]
        if any(found[key] != about[key] for key in keys):
            raise DataError(
                f"`{plan.out}` holds runs on {kind} {found[name]} at {found[commit]}, asked is "
                f"{about[name]} at {about[commit]}. Give another `--out`."
            )
    write_json(path, found | about)
    return about


def _own(name: str | None) -> str:
    """A model in the place of the recipes' own, in a form that another working directory reads
    alike."""
    if name is not None and Path(name).is_dir():
        return str(Path(name).resolve())
    return name or "the recipes' own"


def _rows(plan: Plan, recipe: Recipe, seeds: Sequence[int]) -> list[dict[str, Any]]:
    from pipelines.reproduce.plan import NotRun
    from pipelines.reproduce.verdicts import rows_of

    runs: dict[int, Measured] = {}
    reasons: dict[int, str] = {}
    for seed in seeds:
        try:
            runs[seed] = plan.run(recipe, seed)
        except NotRun as error:  # the other seeds and recipes can still be run
            reasons[seed] = str(error)
    return rows_of(recipe, runs, reasons)


def _write(out: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from pipelines.reproduce.verdicts import markdown
    from pipelines.runs.provenance import hardware, versions

    made = {"created": now(), "versions": versions(), "hardware": hardware()}
    write_json(out / "reproduce.json", {"format": FORMAT, **about, **made, "rows": rows})
    write_bytes(out / "reproduce.md", markdown(rows, about).encode())


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("reproduce")
