"""One process at a time in a folder: the second is refused and told who is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.errors import DataError
from trainables.files import now, read_json, write_json


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold `folder` while the block runs. A holder that was killed holds nothing any more. A folder
    that is new, and into which nothing came, goes again."""
    from filelock import FileLock, Timeout

    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / "holder.json"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = read_json(holder) if holder.exists() else {}
        raise DataError(
            f"`{folder}` is in use by process {who.get('pid')} on {who.get('host')} since "
            f"{who.get('since')}: wait for it, or give another `--out`."
        ) from None
    try:
        write_json(holder, {"pid": os.getpid(), "host": os.uname().nodename, "since": now()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        if new and all(path.name == ".lock" for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()
