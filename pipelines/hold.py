"""One process at a time in a folder: the second is refused and told who is there.

Flows in: a folder. Flows out: a context in which it is held.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.errors import DataError
from trainables.files import now, read_json, write_json

LEFT = {".lock", "holder.json", "ray", "records", "trials"}  # of a command that ended early
# What is read or appended to in the folder of a run or a search, outermost first; of an arena also.
OF_A_RUN = (
    "*.json",
    "*.jsonl",
    "*.log",
    "*.sums",
    ".lock",
    "records",
    "records/*.json",
    "trials",
    "trials/*",
    "trials/*/*.json*",
)
READ = (*OF_A_RUN, "cells", "cells/*", "cells/*/*", *(f"cells/*/*/{name}" for name in OF_A_RUN))


@contextmanager
def hold(folder: Path, *marks: str) -> Iterator[None]:
    """Hold `folder` while the block runs. A holder that was killed holds nothing any more. A new
    folder that stays empty is removed again. `marks` are the files by which the command knows a
    folder of its own: a folder with other files and none of these is not written to."""
    from filelock import FileLock, Timeout

    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    if marks:
        _refuse_foreign(folder, *marks)
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


def refuse_links(run: Path) -> None:
    """Raise where a file or folder in a run's folder is a symbolic link out of it: it would be
    read, or written, elsewhere. The run's folder itself may be a link."""
    for path in (path for pattern in READ for path in sorted(run.glob(pattern))):
        if path.is_symlink() and not path.resolve().is_relative_to(run.resolve()):
            raise DataError(
                f"`{path}` is a symbolic link out of `{run}`, to `{path.readlink()}`: what a run "
                "found lies in its own folder. Put a copy in the place of the link."
            )


def _refuse_foreign(folder: Path, *marks: str) -> None:
    names = sorted(path.name for path in folder.iterdir() if not path.name.endswith(".tmp"))
    foreign = [name for name in names if name not in LEFT]
    if foreign and not {*marks} & {*names}:
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise DataError(
            f"`{folder}` holds files of something else ({', '.join(foreign[:3])}{more}) and no "
            f"{marks[0]}: nothing was written. Give a new or an empty folder as `--out`."
        )
