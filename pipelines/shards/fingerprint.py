"""A hash over all files that a source reads, from names, sizes and times alone.

Flows in: a source. Flows out: its hash. While the hash stays, a second `cliptune shards` does
nothing; a changed, added or touched file changes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.sources import flickr_token, huggingface, webdataset
from pipelines.sources.base import Options, walk
from pipelines.sources.registry import SOURCES
from trainables.media.frame_folders import frame_paths

INDEXED = ("karpathy", "coco", "flickr_token", "table", "zhou")  # they name images elsewhere


def fingerprint(source: str, name: str, options: Options) -> tuple[str, int | None]:
    """The hash (of a Hub id: its commit), and the number of records where that is known."""
    if name == "huggingface" and not Path(source).exists():
        return huggingface.commit(source), None
    total = hashlib.sha256()
    for path in _files(source, name):
        total.update(_line(path))
    records = 0
    if name in INDEXED:
        # The source is read once more, for its paths: seconds where decoding takes minutes.
        for record in SOURCES[name](source, options.silent()):
            if isinstance(record.image, bytes):  # the files above hold everything
                return total.hexdigest(), None
            if isinstance(record.image, Path):
                for path in files_of(record.image):
                    total.update(_line(path))
            records += 1
    return total.hexdigest(), records or None


def _files(source: str, name: str) -> Iterator[Path]:
    path = Path(source)
    if name == "webdataset":
        yield from webdataset.tars(source)
    elif name == "flickr_token" and path.is_file():
        yield from flickr_token.files(path)
    elif path.is_dir():
        yield from walk(path)
    else:
        yield path


def files_of(image: Path) -> list[Path]:
    """An image's file, or those of a folder of frames."""
    return frame_paths(image) if image.is_dir() else [image]


def _line(path: Path) -> bytes:
    try:
        found = path.stat()
        text = f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n"
    except OSError:
        text = f"{path}\0missing\n"
    return os.fsencode(text)
