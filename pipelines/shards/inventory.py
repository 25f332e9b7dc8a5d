"""The files of a source, by their names: those that hold records, and the others.

Flows in: a source and its format. Flows out: lines about the files by ending, about the files with
the records and those that are not read, and about files or folders whose names tell a split. No
content is read. The search ends after a number of files and of seconds, whatever the size.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.sources import coco, flickr_token, folder, table, text_folder, webdataset
from pipelines.sources.base import MEDIA_SUFFIXES, ending, split_of_name, walk
from pipelines.sources.registry import SIGNS
from pipelines.sources.samples import FIELD_OF

FILES, SECONDS = 100_000, 2.0
SHOWN = 3  # names in a line


@dataclass
class Files:
    """The files of a source by ending; `more`: there are others, which were not looked at."""

    found: Counter[str] = field(default_factory=Counter)
    read: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    more: bool = False


def files_of(source: str, name: str) -> Iterator[str]:
    """Lines about the files, of which no content is read."""
    root = Path(source)
    if not root.is_dir():
        return
    files, until = Files(), time.monotonic() + SECONDS
    of_coco = coco.files(root) if name == "coco" else []
    for number, path in enumerate(walk(root)):
        if number == FILES or time.monotonic() > until:
            files.more = True
            break
        shown = str(path.relative_to(root))
        kind = "hidden" if "/." in f"/{shown}" else ending(path.name)
        files.found[kind] += 1
        if path in of_coco or (kind != "hidden" and _is_read(name, path, root)):
            files.read.append(shown)
        elif kind == "hidden" or not _is_picture(name, path):
            files.unread[kind] += 1
    least = "at least " if files.more else ""
    yield f"files: {least}{files.found.total():,}: {counted(files.found)}"
    if files.read:
        yield f"read: {few(files.read)}"
    if files.unread:
        yield f"not read: {counted(files.unread)}"


def _is_read(name: str, path: Path, root: Path) -> bool:
    """Whether a file says what the records are, or holds them."""
    if name == "flickr_token":
        return path.parent == root and (
            SIGNS[name](path) or (path.suffix == ".txt" and split_of_name(path.stem) is not None)
        )
    if name == "img2dataset" and path.name.endswith((*webdataset.SUFFIXES, ".parquet")):
        return True
    if name == "text_folder":
        texts = text_folder.texts_of(root) or root
        of_texts = path.suffix.lower() == ".txt" and path.is_relative_to(texts)
        lists = [*text_folder.split_lists(texts), *text_folder.split_of_images(texts)]
        return of_texts or path in lists
    if name in ("sidecar", "img2dataset"):
        words = FIELD_OF.get(path.suffix.lower()[1:], "image") != "image"
        return words and not path.name.endswith("_stats.json")
    return name not in ("coco", "huggingface") and name in SIGNS and SIGNS[name](path)


def _is_picture(name: str, path: Path) -> bool:
    """Whether a file is an image that the format may read, or is part of a saved data set."""
    return name in ("huggingface", "lance") or (
        name != "webdataset" and path.suffix.lower() in MEDIA_SUFFIXES
    )


def split_files(source: str, name: str) -> Mapping[str, str]:
    """The files or folders whose names tell a split."""
    path = Path(source)
    if name == "coco":
        found = coco.files(path)
        names = [os.path.relpath(one, path if path.is_dir() else path.parent) for one in found]
        splits = [coco.split_of(one) for one in found]
    elif name == "flickr_token":
        lists = flickr_token.split_lists(path)
        names, splits = [one.name for one in lists], [split_of_name(one.stem) for one in lists]
    elif name == "text_folder":
        told_by = text_folder.split_lists(text_folder.texts_of(path) or path)
        names, splits = [one.name for one in told_by], list(told_by.values())
    elif name in ("folder", "sidecar"):
        names = folder.split_folders(path)
        splits = [split_of_name(one) for one in names]
    elif name == "table":
        tables = table.tables(source)
        names = [os.path.relpath(one, source) for one in tables]
        splits = table.file_splits(source, tables)
    elif name == "webdataset":
        told = webdataset.tar_splits(source, webdataset.tars(source))
        names, splits = list(told), list(told.values())
    else:
        return {}
    return {one: split for one, split in zip(names, splits, strict=True) if split is not None}


def counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(12)) + (
        ", ..." if len(counts) > 12 else ""
    )


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" * (len(names) > SHOWN))
