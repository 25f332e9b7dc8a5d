"""Captions gathered by image, for formats that list the two apart.

They wait in a private SQLite file that vanishes with the connection, and only its page cache is in
memory, so the join costs the same few MiB for a thousand captions as for a hundred million.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator


class Gather:
    """`{key: captions}` on disk, in the order they came; built whole, then looked up."""

    def __init__(self, pairs: Iterable[tuple[str, str | bytes]]) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # "": temporary, on disk when large
        self._db.execute("create table caption (key blob, text blob)")
        self._db.execute("begin")
        self._db.executemany(
            "insert into caption values (?, ?)", ((_raw(key), _raw(text)) for key, text in pairs)
        )
        self._db.execute("create index by_key on caption (key)")

    def __len__(self) -> int:
        """How many captions there are."""
        return int(self._db.execute("select count(*) from caption").fetchone()[0])

    def __getitem__(self, key: str) -> tuple[bytes, ...]:
        query = "select text from caption where key = ? order by rowid"
        return tuple(row[0] for row in self._db.execute(query, (_raw(key),)))

    def __iter__(self) -> Iterator[str]:
        """Each key once, in the order of its first caption."""
        query = "select key from caption group by key order by min(rowid)"
        return (row[0].decode("utf-8", "surrogateescape") for row in self._db.execute(query))


def _raw(text: str | bytes) -> bytes:
    """Text as bytes; bytes that were not UTF-8 are restored as they were."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate out of JSON's escapes
        return text.encode("utf-8", "surrogatepass")
