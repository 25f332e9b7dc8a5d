"""What the whole source must agree on: each id once, no image in two splits, one label a class.

The ids and image hashes lie in a private SQLite file: about 150 bytes of disk an image and at most
64 MiB of memory, so that a hundred million images need 15 GB of temporary disk and no more memory
than a thousand.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from trainables.shards import SPLITS


@dataclass(frozen=True)
class Twin:
    """An earlier record with the same image bytes."""

    id: str
    split: str


class Ledger:
    """The records so far."""

    def __init__(self) -> None:
        self.classes: dict[str, int] = {}  # name to label
        self._names: dict[int, str] = {}  # and back
        self._db = sqlite3.connect("", isolation_level=None)  # "": temporary, on disk when large
        self._db.execute("pragma cache_size = -65536")
        self._db.execute(
            "create table seen (id text primary key, digest blob, rank int) without rowid"
        )
        self._db.execute("create index by_digest on seen (digest, rank)")
        self._db.execute("begin")

    def fault(self, row: dict[str, Any]) -> str | None:
        """Why `row` contradicts an earlier one. Gives a class without a label its own."""
        known = self._db.execute("select 1 from seen where id = ?", (row["id"],))
        if known.fetchone():
            return "duplicate id"
        name, label = row["class_name"], row["label"]
        if name is None:
            return None
        if label is None:
            label = self.classes.get(name, max(self._names, default=-1) + 1)
        if self.classes.setdefault(name, label) != label:
            return f"class `{name}` has label {label} here and {self.classes[name]} before"
        if self._names.setdefault(label, name) != name:
            del self.classes[name]
            return f"label {label} is class `{name}` here and `{self._names[label]}` before"
        row["label"] = label
        return None

    def add(self, row: dict[str, Any]) -> Twin | None:
        """Enter `row`; the twin is one in another split if there is one, else of its own."""
        digest, rank = bytes.fromhex(row["sha256"])[:16], SPLITS.index(row["split"])
        found = self._db.execute(
            "select id, rank from seen where digest = ? order by rank = ? limit 1", (digest, rank)
        ).fetchone()
        self._db.execute("insert into seen values (?, ?, ?)", (row["id"], digest, rank))
        return Twin(found[0], SPLITS[found[1]]) if found else None

    def yields_to(self, name: str) -> Twin | None:
        """The twin that record `name` gives way to: test before val, val before train."""
        found = self._db.execute(
            "select b.id, b.rank from seen a join seen b on a.digest = b.digest "
            "where a.id = ? and b.rank > a.rank order by b.rank desc limit 1",
            (name,),
        ).fetchone()
        return Twin(found[0], SPLITS[found[1]]) if found else None
