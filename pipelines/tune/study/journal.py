"""The journal that a study is kept in, and a file beside it that protects it.

Flows in: what a study is told. Flows out: Optuna's journal file, `journal.log`, and `journal.sums`,
which gets a line after each write: the number of bytes of the journal, and the hash of them all. A
kill between the two leaves bytes without a line. Any other difference is damage; then nothing
counts behind the last line of sums that is right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial

from trainables.errors import DataError
from trainables.files import write_bytes

NAME, SUMS = "journal.log", "journal.sums"
STUDY = "cliptune"
Log = dict[str, Any]


class Altered(DataError):
    """A journal that is not as it was written."""


class Journal(JournalFileBackend):
    """Optuna's journal file, for its only writer: a `batch` costs one fsync, not one for each of
    the dozens of facts about a trial, and the file is read once.

    After a write that fails, as on a full disk, nothing more is written: the journal on disk ends
    as if its writer had been killed. `lost` says why.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path, self.sums = path, path.with_name(SUMS)
        data = path.read_bytes()
        self.size, self.hash = len(data), hashlib.sha256(data)
        self.logs: list[Log] = [json.loads(line) for line in data.splitlines()]
        self.waiting: list[Log] | None = None  # of the current batch
        self.lost: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles what holds a study; a search is restored from the file alone

    def read_logs(self, log_number_from: int) -> Iterator[Log]:  # type: ignore[override]
        return iter(self.logs[log_number_from:])

    def append_logs(self, logs: list[Log]) -> None:
        self.logs += json.loads(json.dumps(logs))  # as they will be read again
        if self.waiting is None:
            self._write(logs)
        else:
            self.waiting += logs

    def _write(self, logs: list[Log]) -> None:
        if self.lost is not None:
            return
        try:
            super().append_logs(logs)
            self._enter()
        except (OSError, RuntimeError) as error:  # of Optuna's lock, which lies beside it
            self.lost = error

    def _enter(self) -> None:
        """Enter what was appended, by us or by a dashboard."""
        with self.path.open("rb") as file:
            file.seek(self.size)
            more = file.read()
        if not more:  # another file has its place, as where a disk is no longer mounted
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))
        self.size += len(more)
        self.hash.update(more)
        with self.sums.open("a", encoding="ascii") as file:
            file.write(f"{self.size} {self.hash.hexdigest()}\n")

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """A context whose facts are written together at its end; a batch in a batch is part of
        it."""
        if self.waiting is not None:
            yield
            return
        self.waiting = []
        try:
            yield
        finally:
            logs, self.waiting = self.waiting, None
            if logs:
                self._write(logs)


class Storage(JournalStorage):
    """Optuna's view of a journal."""

    def __init__(self, journal: Journal) -> None:
        with readable(journal.path):
            super().__init__(journal)
        self.journal = journal


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Raise `Altered` where Optuna cannot read a line."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise Altered(f"`{path}` is not a readable Optuna journal: {why}.") from None


def intact(path: Path) -> tuple[int, str]:
    """How many bytes of the journal in `path` are as they were written, and what is wrong with the
    others (empty: nothing). In an older journal without sums, all lines that are JSON count."""
    sums = _sums(path.with_name(SUMS))  # before the journal: it may be growing
    data = path.read_bytes() if path.exists() else b""
    size, digest = sums[-1] if sums else (0, hashlib.sha256().hexdigest())
    if len(data) >= size and hashlib.sha256(data[:size]).hexdigest() == digest:
        for line in data[size:].splitlines(keepends=True):
            if line.endswith(b"\n") and not _is_json(line):
                number = 1 + data.count(b"\n", 0, size)
                return size, f"line {number:,} of `{path}` was altered: it is no JSON any more"
            size += len(line) if line.endswith(b"\n") else 0
        return size, ""
    total, good, read = hashlib.sha256(), 0, 0
    for size, digest in sums:
        total.update(data[read:size])
        read = size
        if size <= len(data) and total.hexdigest() == digest:
            good = size
    how = "shortened" if len(data) < read else "altered"
    return good, (
        f"`{path}` was {how} since it was written: of its {read:,} bytes the first {good:,} are as "
        "they were"
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def check(path: Path) -> int:
    """The number of bytes in the whole lines of the journal in `path`. Raises `Altered` unless it
    is as it was written."""
    size, wrong = intact(path)
    if wrong:
        raise Altered(f"{wrong}.")
    return size


def read_trials(path: Path) -> list[FrozenTrial]:
    """The trials of the journal in `path`, which a running search may be appending to; none where
    there is no such file, or no study in it. Raises `Altered`."""
    return trials_of(path, check(path))


def trials_of(path: Path, size: int) -> list[FrozenTrial]:
    """The trials in the first `size` bytes of the journal in `path`."""
    if not size:
        return []
    with readable(path):
        storage = JournalStorage(Past(path.read_bytes()[:size]))
    if all(study.study_name != STUDY for study in storage.get_all_studies()):
        return []
    return storage.get_all_trials(storage.get_study_id_from_name(STUDY))


class Past(BaseJournalBackend):
    """A journal for those who only read it."""

    def __init__(self, data: bytes) -> None:
        self.logs: list[Log] = [json.loads(line) for line in data.splitlines()]

    def read_logs(self, log_number_from: int) -> Iterator[Log]:
        return iter(self.logs[log_number_from:])

    def append_logs(self, logs: list[Log]) -> None:
        raise NotImplementedError("what is only read is not written to.")


def settle(path: Path) -> None:
    """Remove the leavings of a killed writer: half a line, and its lock. Raises `Altered` where
    more is wrong."""
    size = check(path)
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
    for lock in path.parent.glob(f"{NAME}.*"):
        lock.unlink()


def cut(path: Path, size: int) -> None:
    """Keep the first `size` bytes of the journal in `path`, and their sums."""
    data = path.read_bytes()[:size] if path.exists() else b""
    write_bytes(path, data)
    left = [f"{one} {digest}\n" for one, digest in _sums(path.with_name(SUMS)) if one <= size]
    write_bytes(path.with_name(SUMS), "".join(left).encode())


def _sums(path: Path) -> list[tuple[int, str]]:
    """The lines that are whole, in order; none where there is no such file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)
    found, last = [], 0
    for line in lines:
        size, _, digest = line.partition(" ")
        if line.endswith("\n") and size.isdecimal() and int(size) >= last:
            last = int(size)
            found.append((last, digest.strip()))
    return found
