"""Text files that are not UTF-8: the reason, with the command that converts them.

Flows in: a path, or a record out of it whose other bytes stand as surrogates. Flows out: the reason
with the command. Nothing is decoded by a guess: the guess is in the command alone.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pipelines.console import word
from pipelines.sources.base import BadRecord, RawRecord
from trainables.errors import DataError

_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes read with `surrogateescape`
_BEGINNINGS = {
    rb"\xff\xfe\0\0|\0\0\xfe\xff": "UTF-32",
    rb"\xff\xfe|\xfe\xff": "UTF-16",
    rb"[^\0]\0\0\0": "UTF-32LE",
    rb"[^\0]\0": "UTF-16LE",
    rb"\0\0\0[^\0]": "UTF-32BE",
    rb"\0[^\0]": "UTF-16BE",
}
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # in Windows's 1252


def wide(path: Path) -> str | None:
    """The encoding of a file whose first characters have several bytes each."""
    with path.open("rb") as file:
        first = file.read(4)
    return next((name for begin, name in _BEGINNINGS.items() if re.match(begin, first)), None)


def refuse_wide(path: Path) -> None:
    if wide(path):
        raise DataError(f"`{path}` is {not_utf8(path)}.")


def in_utf8(record: RawRecord, path: Path) -> RawRecord:
    """The record as it is, or why it cannot be used, where its words have other bytes."""
    words = (record.id, record.class_name, *record.captions)
    if any(map(_is_other, words)):
        return replace(record, image=BadRecord(not_utf8(path)))
    return record


def _is_other(text: object) -> bool:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return isinstance(text, str) and _ESCAPED.search(text) is not None


def not_utf8(path: Path) -> str:
    """The reason against a file, or a record in it, and what to type."""
    found = path.stat()
    return _reason(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _reason(path: Path, _size: int, _time: int) -> str:
    new = path.with_name(f"{path.stem}.utf8{path.suffix}")
    encoding, but = wide(path), ""
    if encoding is None:
        with path.open("rb") as file:
            latin = any(map(_UNDEFINED.search, iter(lambda: file.read(2**20), b"")))
        encoding, but = ("ISO-8859-1" if latin else "WINDOWS-1252"), " if it is Western European"
    line = f"iconv -f {encoding} -t UTF-8 {word(path)} > {word(new)}"
    return f"not UTF-8 (`{line}` converts it{but}: read that file instead)"
