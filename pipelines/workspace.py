"""A stage's output folder: built hidden beside its place, moved there when complete.

Flows in: the place. Flows out: an empty folder to write to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.errors import DataError


@contextmanager
def none_left_empty(out: Path) -> Iterator[None]:
    """Remove `out` and the folders above it again if the block made them and left them empty."""
    new = [path for path in (out, *out.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in new:
            with suppress(OSError):  # a file, not there, or not empty
                path.rmdir()


@contextmanager
def workspace(out: Path, logs: bool = False) -> Iterator[Path]:
    """An empty hidden folder that takes the place of `out` when the block ends without an error.

    One process at a time holds it. After an error it is removed, or with `logs` kept for them, as
    after a kill. The contents of `out` are untouched, and the next run empties the hidden folder
    and starts over.
    """
    from filelock import lock_descriptor

    out = out.resolve()
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        if not lock_descriptor(lock, blocking=False):
            raise DataError(f"another process is writing `{out}`.")
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield folder
            _swap(folder, out)
        finally:
            if not logs:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _swap(folder: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)
