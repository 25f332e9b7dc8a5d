"""Karpathy's JSON for Flickr8k, Flickr30k and COCO.

`{"images": [{"filename", "split", "sentences": [{"raw"}], "filepath"?}, ...]}`. `restval` counts as
train, as everywhere in the field. The images lie under `--images`, or beside the file, or in
`images/` beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sources.base import BadRecord, ImageRoot, Options, RawRecord, inside
from pipelines.sources.json_stream import items


def read(source: str, options: Options) -> Iterator[RawRecord]:
    path = Path(source)
    root = ImageRoot(options.images, [path.parent, path.parent / "images"])
    for number, image in enumerate(items(path, "images"), 1):
        record = _record(image)
        if isinstance(record, BadRecord):
            yield RawRecord(f"image {number}", record)
            continue
        name, captions, split = record
        yield RawRecord(name, inside(root.of(name), name), captions, split=split)


def _record(image: Any) -> tuple[str, tuple[str, ...], str | None] | BadRecord:
    """Path in the image folder, captions and split of one entry."""
    try:
        name = str(Path(image.get("filepath", "")) / image["filename"])
        captions = tuple(sentence["raw"] for sentence in image["sentences"])
        return name, captions, image.get("split")
    except KeyError as error:
        return BadRecord(f"no `{error.args[0]}`")
    except (AttributeError, TypeError):
        return BadRecord("not an image entry of Karpathy's layout")
