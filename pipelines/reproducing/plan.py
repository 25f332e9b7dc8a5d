"""The commands that a recipe stands for, run once each, and the accuracies they leave on disk.

Flows in: a recipe, a seed, the folders of the data. Flows out: the accuracy of each part that was
measured, or the reason why there is none. The stages themselves know what is done already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.reproducing.recipes import Recipe
from pipelines.typed import command, typed
from trainables.errors import DataError
from trainables.files import read_json

STOPPED = 130  # the exit code of a stage that was interrupted


class NotRun(Exception):
    """A command failed, so a recipe has no outcome."""


@dataclass(frozen=True)
class Measured:
    """Accuracies by part of the classes, e.g. base and new."""

    adapter: dict[str, float]
    zero_shot: dict[str, float]


@dataclass
class Plan:
    """Runs recipes in one folder; what several of them need is made once."""

    out: Path
    shards: Mapping[str, Path]  # by data set
    backbone: str | None  # instead of the recipes' own
    revision: str | None
    codes: dict[tuple[str, ...], int] = field(default_factory=dict)  # of the commands so far

    def run(self, recipe: Recipe, seed: int) -> Measured:
        """Draw, encode, train and evaluate; raises `NotRun` where one of them fails."""
        parts = ["all"] if recipe.protocol == "all" else ["base", "new"]
        draws = [self._draw(recipe, seed, part) for part in parts]
        features = self._encode(recipe)
        folder = self.out / "runs" / recipe.name / f"seed-{seed}"
        values = {**recipe.set, "seed": seed}
        self._do(
            *("train", "--features", features, "--draw", draws[0], "--out", folder),
            *("--adapter", recipe.adapter, "--set", *(f"{k}={_text(values[k])}" for k in values)),
        )
        self._do("evaluate", "--run", folder)
        found = {parts[0]: _accuracies(folder / "result.json")}
        for part, draw in zip(parts[1:], draws[1:], strict=True):
            self._do("evaluate", "--run", folder, "--draw", draw)
            found[part] = _accuracies(folder / f"result-{part}.json")
        ours, plain = ({part: pair[n] for part, pair in found.items()} for n in (0, 1))
        return Measured(ours, plain)

    def _draw(self, recipe: Recipe, seed: int, part: str) -> Path:
        name = f"{recipe.dataset}-{recipe.shots}-{seed}-{part}.json"
        path = self.out / "draws" / name
        self._do(
            *("draw", "--shards", self.shards[recipe.dataset], "--dataset", recipe.dataset),
            *("--shots", recipe.shots, "--seed", seed, "--part", part),
            *("--words", recipe.words, "--out", path),
        )
        return path

    def _encode(self, recipe: Recipe) -> Path:
        kind = f"{recipe.dataset}-{recipe.views}{'-pixels' if recipe.pixels else ''}"
        folder = self.out / "features" / kind
        revision = ("--revision", self.revision) if self.revision else ()
        self._do(
            *("encode", "--shards", self.shards[recipe.dataset], "--out", folder),
            *("--backbone", self.backbone or recipe.backbone, *revision),
            *("--views", recipe.views, *(("--pixels",) if recipe.pixels else ())),
        )
        return folder

    def _do(self, *words: object) -> None:
        """Run a command, once in all; its failure is that of every recipe that needs it."""
        key = tuple(map(str, words))
        if key not in self.codes:
            self.codes[key] = command(*words)
        if self.codes[key] == STOPPED:
            raise KeyboardInterrupt
        if self.codes[key]:
            raise NotRun(f"code {self.codes[key]} from `{typed(*words)}`")


def _text(value: object) -> str:
    """A value as `--set` reads it."""
    named = value is None or isinstance(value, bool)
    return str(value).lower() if named else str(value)


def _accuracies(path: Path) -> list[float]:
    """Of the trained adapter and of zero-shot, as `evaluate` wrote them."""
    rows = read_json(path)["rows"]
    chosen = next((row for row in rows if row["selected"]), None)
    if chosen is None:
        raise DataError(f"`{path}` has no row that was chosen on val.")
    key = next(name for name in chosen["metrics"] if name.startswith("accuracy@"))
    return [float(row["metrics"][key]["value"]) for row in (chosen, rows[0])]
