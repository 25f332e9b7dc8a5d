"""The facts on which a whole source must agree.

Flows in: checked records, one at a time. Flows out: whether a record contradicts earlier ones. An
id is one picture, no picture stands in two splits, a class has one label. What later records say of
a picture whose row is on disk already is kept here too.

All of it lies in a private SQLite file: about 300 bytes of disk an image, the words of its later
records, and at most 64 MiB of memory. So a hundred million images need 30 GB of temporary disk and
no more memory than a thousand.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.shards.united import Row
from trainables.data.shards import SPLITS

SAID = ("captions", "label", "class_name", "classes", "group")  # of a picture, beside its bytes


@dataclass(frozen=True)
class Twin:
    """The row of the same image bytes in another split."""

    id: str
    split: str


class Ledger:
    """The records so far. A picture of a split has one row, made of its first record."""

    def __init__(self) -> None:
        self.classes: dict[str, int] = {}  # name to label
        self._names: dict[int, str] = {}  # and back
        self._ours: set[str] = set()  # classes that the source gives no label
        self._db = sqlite3.connect("", isolation_level=None)  # "": temporary, on disk when large
        self._db.execute("pragma cache_size = -65536")
        for table in (
            "name (id text primary key, digest blob) without rowid",
            "picture (digest blob, rank int, id text, of text, shard int, records int, "
            "primary key (digest, rank)) without rowid",
            "later (digest blob, rank int, said text)",
        ):
            self._db.execute(f"create table {table}")
        self._db.execute("create index of_picture on later (digest, rank)")
        self._db.execute("begin")

    def fault(self, row: Row) -> str | None:
        """How `row` contradicts an earlier one; None: it does not. A class without a label gets
        one."""
        known = self._db.execute("select digest from name where id = ?", (row["id"],)).fetchone()
        if known and known[0] != _digest(row):
            return "duplicate id"
        name, label = row["class_name"], row["label"]
        if name is None:
            return None
        if label is None:
            label = self.classes.get(name)
            if label is None:
                self._ours.add(name)
                label = max(self._names, default=-1) + 1
        if self.classes.setdefault(name, label) != label:
            return f"class `{name}` has label {label} here and {self.classes[name]} before"
        if self._names.setdefault(label, name) != name:
            del self.classes[name]
            self._ours.discard(name)
            return f"label {label} is class `{name}` here and `{self._names[label]}` before"
        row["label"] = label
        return None

    def settle(self) -> dict[int, int]:
        """Number the classes without a label from the source by name, in whatever order they came;
        the old labels with their new ones."""
        labels = sorted(self.classes[name] for name in self._ours)
        now = dict(zip(sorted(self._ours), labels, strict=True))
        changed = {self.classes[name]: label for name, label in now.items()}
        self.classes.update(now)
        return {old: new for old, new in changed.items() if old != new}

    def twin(self, row: Row, better: bool = False) -> Twin | None:
        """The row of this picture in another split. `better`: in one that it gives way to, in the
        order test, val, train."""
        found = self._db.execute(
            f"select id, rank from picture where digest = ? and rank {'>' if better else '!='} ? "
            "order by rank desc limit 1",
            _key(row),
        ).fetchone()
        return Twin(found[0], SPLITS[found[1]]) if found else None

    def knows(self, row: Row) -> bool:
        """Whether the picture has a row in this split; then one more record of it is counted."""
        self._db.execute("insert or ignore into name values (?, ?)", (row["id"], _digest(row)))
        found = self._db.execute(
            "update picture set records = records + 1 where digest = ? and rank = ?", _key(row)
        )
        return found.rowcount > 0

    def add(self, row: Row, shard: int) -> None:
        """Enter the first record of a picture, whose row is in this shard of its split."""
        self._db.execute(
            "insert into picture values (?, ?, ?, ?, ?, 1)",
            (*_key(row), row["id"], row["group"], shard),
        )

    def group(self, row: Row) -> str | None:
        """The group of the picture's first record."""
        query = "select of from picture where digest = ? and rank = ?"
        found: tuple[str | None] = self._db.execute(query, _key(row)).fetchone()
        return found[0]

    def note(self, row: Row) -> None:
        """Keep what a later record says of a picture whose row is on disk."""
        said = json.dumps({name: row[name] for name in SAID})
        self._db.execute("insert into later values (?, ?, ?)", (*_key(row), said))

    def later(self, row: Row) -> Iterator[Row]:
        """The later records of the picture, in the order in which they came."""
        query = "select said from later where digest = ? and rank = ? order by rowid"
        return (json.loads(said) for (said,) in self._db.execute(query, _key(row)))

    def records(self, row: Row) -> int:
        """How many records the picture had in this split."""
        query = "select records from picture where digest = ? and rank = ?"
        return int(self._db.execute(query, _key(row)).fetchone()[0])

    def stale(self, every: bool = False) -> Iterator[tuple[str, int]]:
        """Split and number of each shard with a row that lacks later words, or that gives way to
        one of another split; of `every` shard that was written."""
        found = self._db.execute(
            "select distinct rank, shard from picture a where ? or "
            "exists (select 1 from later b where b.digest = a.digest and b.rank = a.rank) or "
            "exists (select 1 from picture b where b.digest = a.digest and b.rank > a.rank)",
            (every,),
        )
        return ((SPLITS[rank], shard) for rank, shard in found.fetchall())


def _digest(row: Row) -> bytes:
    return bytes.fromhex(row["sha256"])[:16]


def _key(row: Row) -> tuple[bytes, int]:
    return _digest(row), SPLITS.index(row["split"])
