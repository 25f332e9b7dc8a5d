"""CoOp's `split_zhou_*.json`: `{"train" | "val" | "test": [[path, label, class name], ...]}`.

The paths are relative to `--images`, or to the file's folder, or to the one folder in it that has
them (`2750/`, `images/`, ...). Records have a class and no caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.sources.base import BadRecord, ImageRoot, Options, RawRecord, inside, with_folders
from pipelines.sources.json_stream import entries


def read(source: str, options: Options) -> Iterator[RawRecord]:
    path = Path(source)
    root = ImageRoot(options.images, with_folders(path.parent))
    for number, (split, entry) in enumerate(entries(path), 1):
        match entry:
            case [str(name), int(label), str(class_name)]:
                image = inside(root.of(name), name)
                yield RawRecord(name, image, label=label, class_name=class_name, split=split)
            case _:
                yield RawRecord(f"entry {number}", BadRecord("not [path, label, class name]"))
