"""COCO's JSON: `captions_<split><year>.json` for captions, `instances_<split><year>.json` for
classes; one file, the `annotations/` folder with several (captions, where both are there), or
Roboflow's `<split>/_annotations.coco.json`.

`{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`, or of objects
`{"image_id", "category_id", "area", "bbox"}` and `"categories": [{"id", "name"}]`. An image with
objects of several classes has that of the largest, or is left out (`--multi-label drop`); one
without an object is left out, and crowds are no objects. The split is the one that the file's or
its folder's name tells (`captions_val2014.json` is val). The images lie under `--images`, beside
the file, or in a folder like `val2014/` beside it or beside `annotations/`. Each file is read
twice, for its annotations and then for its images, and never held in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.sources.base import (
    BadRecord,
    ImageRoot,
    Options,
    RawRecord,
    inside,
    split_of_name,
)
from pipelines.sources.gather import Gather
from pipelines.sources.json_stream import items
from trainables.errors import DataError

# Of the kinds of files in a folder the first that is there is read.
_FILES = ("captions_*.json", "instances_*.json", "*/_annotations.coco.json")
SEVERAL = "the largest object's class of several"


def read(source: str, options: Options) -> Iterator[RawRecord]:
    for file in files(Path(source)):
        yield from _file(file, options)


def files(path: Path) -> list[Path]:
    """The files of a source: those of one kind."""
    if not path.is_dir():
        return [path]
    found = next((found for kind in _FILES if (found := sorted(path.glob(kind)))), [])
    if not found:
        raise DataError(f"`{path}` has no `captions_*.json` and no `instances_*.json`.")
    return found


def split_of(path: Path) -> str | None:
    return split_of_name(path.stem) or split_of_name(path.parent.name)


def _file(path: Path, options: Options) -> Iterator[RawRecord]:
    bad: list[RawRecord] = []
    first = next(items(path, "annotations"))
    boxes = isinstance(first, dict) and "category_id" in first and "caption" not in first
    told = Gather(_objects(path, bad, options) if boxes else _captions(path, bad))
    say = _class_of(path, options) if boxes else _with_captions
    yield from bad
    tally, left = options.tally, len(told)
    tally.read["annotation"] += len(bad)
    subset = re.sub(r"^(captions|instances)_", "", path.stem)
    split = split_of(path)
    parents = [options.images] if options.images else [path.parent, path.parent.parent]
    folders = [folder / part for folder in parents for part in ("", subset, "images")]
    root = ImageRoot(None, folders, split)  # below `--images` there may be one of the subset
    for number, image in enumerate(items(path, "images"), 1):
        tally.read["image"] += 1
        match image:
            case {"id": key, "file_name": str(name)}:
                found = told[str(key)]
                tally.read["annotation"] += len(found)
                left -= len(found)
                record = say(RawRecord(name, inside(root.of(name), name), split=split), found)
                if record is not None:
                    yield record
            case _:
                yield RawRecord(f"image {number}", BadRecord("no `id` or no `file_name`"))
    tally.ignored["annotation of no image"] += max(left, 0)


def _with_captions(record: RawRecord, captions: tuple[bytes, ...]) -> RawRecord:
    return replace(record, captions=captions)


def _class_of(
    path: Path, options: Options
) -> Callable[[RawRecord, tuple[bytes, ...]], RawRecord | None]:
    """What gives an image the class of its objects, or leaves it out."""
    names = {}
    for one in items(path, "categories"):
        match one:
            case {"id": int(key), "name": str(name)}:
                names[key] = name
            case _:
                raise DataError(f"`{path}` has a category without `id` or `name`: {one!r:.80}.")
    label_of = {key: label for label, key in enumerate(sorted(names))}

    def say(record: RawRecord, found: tuple[bytes, ...]) -> RawRecord | None:
        objects = sorted(map(json.loads, found))  # by area, then by category
        several = len({category for _, category in objects}) > 1
        if not objects or (several and options.multi_label == "drop"):
            reason = "objects of several classes" if objects else "no object"
            options.tally.left_out[reason] += 1
            return None
        options.notes[SEVERAL] += several
        category = objects[-1][1]
        if category not in names:
            return replace(record, image=BadRecord(f"category {category} is not in `categories`"))
        return replace(record, label=label_of[category], class_name=names[category])

    return say


def _objects(path: Path, bad: list[RawRecord], options: Options) -> Iterator[tuple[str, str]]:
    """Image, and area and category of an object."""
    for number, entry in enumerate(items(path, "annotations"), 1):
        match entry:
            case {"iscrowd": 1}:
                options.tally.ignored["crowd"] += 1
            case {"image_id": key, "category_id": int(category)}:
                yield str(key), json.dumps([_area(entry), category])
            case _:
                bad.append(_refused(number, entry, ("image_id", "category_id")))


def _area(entry: dict[str, Any]) -> float:
    match entry:
        case {"area": int() | float() as area}:
            return float(area)
        case {"bbox": [_, _, int() | float() as width, int() | float() as height]}:
            return float(width * height)
    return 0.0


def _captions(path: Path, bad: list[RawRecord]) -> Iterator[tuple[str, str]]:
    for number, entry in enumerate(items(path, "annotations"), 1):
        match entry:
            case {"image_id": key, "caption": str(text)}:
                yield str(key), text
            case _:
                bad.append(_refused(number, entry, ("image_id", "caption")))


def _refused(number: int, entry: Any, keys: tuple[str, str]) -> RawRecord:
    missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else []
    wrong = "is not text" if keys[1] == "caption" else "is not a number"
    reason = f"no `{missing[0]}`" if missing and entry else f"`{keys[1]}` {wrong}"
    return RawRecord(f"annotation {number}", BadRecord(reason))
