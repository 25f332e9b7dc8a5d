"""Which cells an arena has: every adapter on every data set, number of shots, seed and half.

Flows in: the flags. Flows out: `plan.json`, one draw a task, and the list of cells, each with a
folder of its own that looks like a study of `cliptune tune`. A resumed arena must agree with its
plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.features.few_shot import Draw, Part, read_draw
from trainables.files import read_hashed, read_json, understood, write_hashed
from trainables.hardware import Precision

FORMAT = "cliptune-arena-plan-1"


@dataclass(frozen=True)
class Source:
    """One data set of the arena."""

    name: str
    shards: str
    words: str  # a shipped list, or a file


@dataclass(frozen=True)
class Cell:
    """One adapter, tuned on one draw."""

    task: str  # the draw's name
    dataset: str
    shots: int
    seed: int
    part: Part
    adapter: str

    @property
    def name(self) -> str:
        return f"{self.task}/{self.adapter}"


@dataclass(frozen=True)
class Plan:
    """An arena, in the folder `folder`. `trials` and `seconds` are the budget of a cell; `epochs`
    is the most that any recipe gets (0: as published)."""

    sources: tuple[Source, ...]
    backbone: str
    revision: str | None
    adapters: tuple[str, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    protocols: tuple[str, ...]
    trials: int
    seconds: float
    epochs: int
    views: int
    precision: Precision = "auto"  # of the stores
    metric: str = "val/accuracy"
    portfolio: bool = True  # its points are tried after the recipe

    def tasks(self) -> Iterator[tuple[str, Source, int, int, Part]]:
        """The draws that are trained on: (name, source, shots, seed, part)."""
        parts: list[Part] = ["base"] if "base_to_new" in self.protocols else []
        if set(self.protocols) - {"base_to_new"}:
            parts.insert(0, "all")
        for source in self.sources:
            for shots in self.shots:
                for seed in self.seeds:
                    for part in parts:
                        yield f"{source.name}-{shots}-{seed}-{part}", source, shots, seed, part

    def cells(self) -> Iterator[Cell]:
        for name, source, shots, seed, part in self.tasks():
            for adapter in self.adapters:
                yield Cell(name, source.name, shots, seed, part, adapter)


def write_plan(folder: Path, plan: Plan) -> None:
    """Write `plan.json`, or check that this folder holds the same arena. More seeds, shots,
    adapters, data or protocols may be asked for: finished cells stay."""
    path = folder / "plan.json"
    wanted: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(plan)}
    if path.exists():
        found = {"precision": "auto", "portfolio": False} | read_json(path)
        names = ("backbone", "revision", "trials", "seconds", "epochs", "views", "precision")
        for name in (*names, "metric", "portfolio"):
            if found.get(name) != wanted[name]:
                raise DataError(
                    f"`{folder}` holds another arena: its `{name}` is {found.get(name)!r}, this "
                    f"one's {wanted[name]!r}. Give another `--out`."
                )
    write_hashed(path, wanted)


def read_plan(folder: Path) -> Plan:
    """The plan of the arena in `folder`."""
    path = folder / "plan.json"
    value = read_hashed(path, FORMAT)
    rest = {n: v for n, v in value.items() if n not in ("format", "sha256", "sources")}
    lists: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in rest.items()}
    with understood(path):
        return Plan(sources=tuple(Source(**one) for one in value["sources"]), **lists)


def draw_of(folder: Path, task: str) -> Draw:
    return read_draw(draw_path(folder, task))


def draw_path(folder: Path, task: str) -> Path:
    return folder / "draws" / f"{task}.json"


def store_of(folder: Path, dataset: str) -> Path:
    """Where the features of a data set are, in a folder of their own."""
    return folder / "features" / dataset


def cell_folder(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / cell.task / cell.adapter


def pending(folder: Path, cells: Sequence[Cell]) -> list[Cell]:
    """The cells that have not ended."""
    return [cell for cell in cells if not (cell_folder(folder, cell) / "cell.json").exists()]
