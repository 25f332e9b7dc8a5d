"""Other people's draws: the index JSON of cross-modal adaptation (Lin et al. 2023).

Flows in: `{"train": {"data": [{"impath": ..., "label": ..., "classname": ...}, ...]}, "val": ...}`
and the labelled images of shards of the same data. Flows out: the same images as a `Draw`. The
paths are of another machine, so an image is found by its path's end:
`./data/2750/River/River_1.jpg` is the shards' `River/River_1.jpg`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.draw.labelled import SPLITS, Labelled, Split
from pipelines.draw.make import Task, assemble, check_enough
from trainables.errors import DataError
from trainables.features.few_shot import Draw, Member
from trainables.files import read_json


@dataclass
class Listed:
    """The images that an index lists of a split, by label."""

    members: dict[int, list[Member]] = field(default_factory=dict)
    missing: dict[int, list[tuple[int, str]]] = field(default_factory=dict)  # row and path


def index_draw(path: Path, data: Labelled, task: Task, drop_missing: bool = False) -> Draw:
    """The images that `path` lists. It must hold `shots` a class of train; val is as it says.

    Shards may lack an image that others had: it was bad, stood in two splits or under two labels,
    or was another row's picture. `drop_missing` leaves it out, and the draw names it.
    """
    shots = task.shots
    listed = {split: _read(path, split, data) for split in SPLITS}
    if not drop_missing:
        _refuse_missing(path, listed)

    def take(split: Split, label: int) -> list[Member]:
        images = listed[split].members.get(label, [])
        missing = listed[split].missing.get(label, ())
        wanted = shots - len(missing) if split == "train" else 0
        check_enough(data, task, split, label, len(images), wanted)
        if split == "train" and len(images) > shots > 0:
            raise DataError(
                f"`{path}` has {len(images)} `train` images of class `{data.classes[label]}` "
                f"(label {label}), more than `--shots` {shots}."
            )
        return images

    draw = assemble(data, task, take)
    missing = [
        name
        for one in listed.values()
        for label in draw.labels
        for _, name in one.missing.get(label, ())
    ]
    return replace(draw, missing=tuple(missing))


def _refuse_missing(path: Path, listed: Mapping[Split, Listed]) -> None:
    for split, one in listed.items():
        if missing := sorted(row for rows in one.missing.values() for row in rows):
            number, name = missing[0]
            more = f", nor are {len(missing) - 1:,} more rows" if len(missing) > 1 else ""
            raise DataError(
                f"`{path}`, row {number} of `{split}`: `{name}` is no `{split}` image of the "
                f"shards{more}; `--missing drop` leaves out what the shards do not have."
            )


def _read(path: Path, split: Split, data: Labelled) -> Listed:
    by_id = {member.id: member for member in data.members[split]}
    listed = Listed()
    seen: set[str] = set()
    for number, row in enumerate(_rows(path, split), 1):
        where = f"`{path}`, row {number} of `{split}`"
        if not isinstance(row, dict):
            raise DataError(f"{where} must have `impath` and `label`, got {row!r:.60}.")
        name, label = row.get("impath"), row.get("label")
        if not isinstance(name, str) or not isinstance(label, int):
            raise DataError(f"{where} must have `impath` and `label`, got {row!r:.60}.")
        member = _find(name, by_id)
        if member is None:
            listed.missing.setdefault(label, []).append((number, name))
            continue
        if member.label != label:
            raise DataError(
                f"{where}: `{name}` has label {label}, and {member.label} "
                f"(`{data.classes[member.label]}`) in the shards."
            )
        if member.id in seen:
            raise DataError(f"{where}: `{name}` was listed before.")
        seen.add(member.id)
        listed.members.setdefault(label, []).append(member)
    return listed


def _rows(path: Path, split: Split) -> Sequence[Any]:
    value = read_json(path)
    try:
        rows = value[split]["data"]
    except (KeyError, TypeError):  # another file altogether
        rows = None
    if not isinstance(rows, list):
        raise DataError(f"`{path}` has no list of images at `{split}.data`.")
    return rows


def _find(name: str, by_id: Mapping[str, Member]) -> Member | None:
    """The image whose id is the longest end of the path."""
    return next((by_id[end] for end in _ends(name) if end in by_id), None)


def _ends(name: str) -> Iterator[str]:
    parts = PurePosixPath(name).parts
    return ("/".join(parts[start:]) for start in range(len(parts)))
