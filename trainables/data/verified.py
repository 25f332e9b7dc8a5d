"""Files whose bytes were found to be as they were written: each is read once, not once a trial.

Flows in: a file and the SHA-256 that it was written with. Flows out: whether it has that hash. A
file found whole is noted in the user's cache, outside of the folder that is checked. The note holds
for as long as the file's size, place on disk and times of change stay. A file that differs is read
each time.

A disk that loses a byte changes no time: `cliptune encode`, which reads all of a store, finds that.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from trainables.files import sha256_bytes

BLOCK = 2**22  # bytes in memory
PATIENCE = 10.0  # seconds between two lines of progress


def intact(path: Path, expected: str) -> bool:
    """Whether `path` has this SHA-256. One process reads it; others that ask meanwhile wait."""
    with _note(path) as note:
        stamp = _stamp(path, expected)
        if note is not None and note.read() == stamp:
            return True
        if read_through(path) != expected:
            return False
        if _stamp(path, expected) == stamp:
            _keep(note, stamp)
        return True


def noted(path: Path) -> str:
    """The SHA-256 of a file that was written just now, noted as whole."""
    digest = read_through(path)
    with _note(path) as note:
        _keep(note, _stamp(path, digest))
    return digest


def read_through(path: Path) -> str:
    """The SHA-256 of all bytes; for a large file, progress is shown."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    began = said = time.monotonic()
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(memoryview(block)[:count])
            done += count
            if time.monotonic() - said > PATIENCE:
                said = time.monotonic()
                rate = done / (said - began)
                print(
                    f"verifying `{path}`, once on this machine: {done / 2**30:,.1f} of "
                    f"{total / 2**30:,.1f} GiB, {rate / 2**20:,.0f} MiB/s, about "
                    f"{max(0, total - done) / rate:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )
    return digest.hexdigest()


def _stamp(path: Path, expected: str) -> str:
    """A value that differs after any change; the time of change is the system's own, which `touch`
    and copying tools do not set."""
    about = path.stat()
    place = [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    return json.dumps([str(path.resolve()), *place, expected])


def notes() -> Path:
    """The folder of the notes."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "cliptune" / "verified"


@contextmanager
def _note(path: Path) -> Iterator[IO[str] | None]:
    """The note on a file, locked for one process at a time; None where none can be kept."""
    with ExitStack() as stack:
        try:
            place = notes() / sha256_bytes(os.fsencode(path.resolve()))[:32]
            place.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(place.open("a+", encoding="utf-8", errors="replace"))
            lock_descriptor(file.fileno())
            file.seek(0)
        except (OSError, RuntimeError):  # no such place, none writable, no home
            yield None
        else:
            yield file


def _keep(note: IO[str] | None, stamp: str) -> None:
    if note is None:
        return
    try:
        os.ftruncate(note.fileno(), 0)
        note.write(stamp)  # torn by a kill, it fits no file
        note.flush()
    except OSError:  # a full disk: it is read again
        return
