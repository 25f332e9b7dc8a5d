"""The commands of a recipe, run once each, and the numbers that they leave on disk.

Flows in: a recipe, a seed, the folders of the data. Flows out: the accuracy of each part of the
classes, or the metrics of captions, or the reason why there are none. The stages themselves know
what is done already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.reproduce.recipes import Recipe
from pipelines.typed import command, typed
from trainables.config import Value
from trainables.errors import DataError
from trainables.files import read_hashed

STOPPED = 130  # the exit code of a stage that was interrupted


class NotRun(Exception):
    """A command failed, so a recipe has no outcome."""


@dataclass(frozen=True)
class Measured:
    """Accuracies by part of the classes, e.g. base and new, or metrics of captions by name."""

    adapter: dict[str, float]
    baseline: dict[str, float]  # zero-shot, or the nearest caption


@dataclass
class Plan:
    """Runs recipes in one folder; what several of them need is made once."""

    out: Path
    shards: Mapping[str, Path]  # by data set
    backbone: str | None  # instead of the recipes' own
    revision: str | None
    lm: str | None = None  # a language model instead of the recipes' own
    lm_revision: str | None = None
    codes: dict[tuple[str, ...], int] = field(default_factory=dict)  # of the commands so far

    def run(self, recipe: Recipe, seed: int) -> Measured:
        """Draw, encode, train and evaluate; raises `NotRun` where one of them fails."""
        parts = {"all": ["all"], "base_to_new": ["base", "new"], "captions": []}[recipe.protocol]
        draws = [self._draw(recipe, seed, part) for part in parts]
        features = self._encode(recipe)
        folder = self.out / "runs" / recipe.name / f"seed-{seed}"
        values = {**recipe.set, **self._speaker(recipe), "seed": seed}
        self._do(
            *("train", "--features", features, *(("--draw", draws[0]) if draws else ())),
            *("--out", folder, "--adapter", recipe.adapter),
            *("--set", *(f"{name}={_text(value)}" for name, value in values.items())),
        )
        self._do("evaluate", "--run", folder)
        if recipe.protocol == "captions":
            return _measured(folder / "result.json", recipe.expected)
        found = {parts[0]: _measured(folder / "result.json", ["accuracy"])}
        for part, draw in zip(parts[1:], draws[1:], strict=True):
            self._do("evaluate", "--run", folder, "--draw", draw)
            found[part] = _measured(folder / f"result-{part}.json", ["accuracy"])
        return Measured(
            {part: one.adapter["accuracy"] for part, one in found.items()},
            {part: one.baseline["accuracy"] for part, one in found.items()},
        )

    def _speaker(self, recipe: Recipe) -> dict[str, Value]:
        """The language model, at its commit."""
        if recipe.lm is None:
            return {}
        return {"adapter.lm": self.lm or recipe.lm, "adapter.lm_revision": self.lm_revision}

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
        """Run a command, once in all; its failure fails every recipe that needs it."""
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


def _measured(path: Path, names: Iterable[str]) -> Measured:
    """Metrics `names` of the trained adapter and of the baseline, as `evaluate` wrote them: each
    with the number of classes or images behind its name."""
    rows = read_hashed(path, "cliptune-result-2")["rows"]
    chosen = next((row for row in rows if row["selected"]), None)
    if chosen is None:
        raise DataError(f"`{path}` has no row that was chosen on val.")
    keys = {name.partition("@")[0]: name for name in chosen["metrics"]}
    ours, plain = (
        {name: float(row["metrics"][keys[name]]["value"]) for name in names}
        for row in (chosen, rows[0])
    )
    return Measured(ours, plain)
