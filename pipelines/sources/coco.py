"""COCO's `captions_<split><year>.json`: one file, or the `annotations/` folder with several.

`{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`. The split is the one
that the file's name tells (`captions_val2014.json` is val). The images lie under `--images`, beside
the file, or in a folder like `val2014/` beside it or beside `annotations/`. Each file is read
twice, for its captions and then for its images, and never held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sources.base import (
    BadRecord,
    Options,
    RawRecord,
    image_root,
    inside,
    split_of_name,
)
from pipelines.sources.gather import Gather
from pipelines.sources.json_stream import items
from trainables.errors import DataError


def read(source: str, options: Options) -> Iterator[RawRecord]:
    path = Path(source)
    files = sorted(path.glob("captions_*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"`{path}` has no `captions_*.json`.")
    for file in files:
        yield from _file(file, options)


def _file(path: Path, options: Options) -> Iterator[RawRecord]:
    bad: list[RawRecord] = []
    captions = Gather(_captions(path, bad))
    yield from bad
    tally, left = options.tally, len(captions)
    tally.read["annotation"] += len(bad)
    subset = path.stem.removeprefix("captions_")
    parents = [options.images] if options.images else [path.parent, path.parent.parent]
    candidates = [folder / part for folder in parents for part in ("", subset, "images")]
    root = None
    for number, image in enumerate(items(path, "images"), 1):
        tally.read["image"] += 1
        match image:
            case {"id": key, "file_name": str(name)}:
                root = root or image_root(candidates, name)
                texts = captions[str(key)]
                tally.read["annotation"] += len(texts)
                left -= len(texts)
                yield RawRecord(name, inside(root, name), texts, split=split_of_name(path.stem))
            case _:
                yield RawRecord(f"image {number}", BadRecord("no `id` or no `file_name`"))
    tally.ignored["annotation of no image"] += max(left, 0)


def _captions(path: Path, bad: list[RawRecord]) -> Iterator[tuple[str, str]]:
    def refuse(number: int, entry: Any) -> None:
        missing = [k for k in ("image_id", "caption") if k not in entry] if entry else []
        reason = f"no `{missing[0]}`" if missing else "`caption` is not text"
        bad.append(RawRecord(f"annotation {number}", BadRecord(reason)))

    for number, entry in enumerate(items(path, "annotations"), 1):
        match entry:
            case {"image_id": key, "caption": str(text)}:
                yield str(key), text
            case dict():
                refuse(number, entry)
            case _:
                refuse(number, {})
