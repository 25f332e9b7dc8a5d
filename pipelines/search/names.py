"""Which files an index knows: their names, the stamps they had, and the row or the reason of each.

Flows in: entries, as files are embedded. Flows out: a table, newest first, in Arrow files that are
only added; what was said of a name last, holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainables.errors import DataError
from trainables.files import sha256_bytes, write_bytes

Stamp: TypeAlias = tuple[int, int]  # size in bytes, mtime in ns: what tells that a file changed
Entry: TypeAlias = tuple[str, Stamp, int, str | None]  # absolute path, row or -1, why it has none
Table: TypeAlias = pa.Table  # newest first
Array: TypeAlias = npt.NDArray[np.int64]
SCHEMA = pa.schema(
    [
        ("name", pa.large_string()),
        ("size", pa.int64()),
        ("changed", pa.int64()),
        ("row", pa.int64()),
        ("reason", pa.large_string()),
    ]
)


class Names:
    """The entries of an index."""

    def __init__(self, table: Table | None = None) -> None:
        self.table = SCHEMA.empty_table() if table is None else table

    def places(self, names: Sequence[str]) -> Array:
        """Where the entry of each name is, -1 where there is none: (N,) int64."""
        asked = pa.array(names, pa.large_string())
        found = pc.index_in(asked, value_set=self.table["name"].combine_chunks())
        return np.asarray(found.fill_null(-1)).astype(np.int64)

    def unchanged(self, places: Array, stamps: Sequence[Stamp]) -> npt.NDArray[np.bool_]:
        """Which of the entries at `places` were made of a file with this stamp: (N,)."""
        kept = np.stack([self.column("size"), self.column("changed")], 1)
        given = np.array(stamps, np.int64).reshape(-1, 2)
        same = np.zeros(len(places), np.bool_)
        known = places >= 0
        same[known] = (kept[places[known]] == given[known]).all(1)
        return same

    def column(self, name: str) -> Array:
        return self.table[name].to_numpy()

    def reasons(self, places: Array) -> list[Any]:
        return self.table["reason"].take(pa.array(places)).to_pylist()

    def plus(self, newer: Table) -> Names:
        return Names(pa.concat_tables([newer, self.table]))

    @property
    def living(self) -> int:
        """How many rows an entry still has."""
        return int((self.lasting().column("row") >= 0).sum())

    def lasting(self) -> Names:
        """Each name once, as it was said last."""
        names = self.table["name"].combine_chunks()
        first = np.asarray(pc.index_in(names, value_set=names)) == np.arange(len(names))
        return Names(self.table.filter(pa.array(first)))


def table_of(entries: Sequence[Entry]) -> Table:
    """A table of entries, the last of which is the newest."""
    rows = [(name, *stamp, row, reason) for name, stamp, row, reason in reversed(entries)]
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.table([list(column) for column in columns], schema=SCHEMA)


def write_part(path: Path, table: Table) -> str:
    """Write a part of the table, and give its SHA-256."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as file:
        file.write_table(table)
    data = sink.getvalue().to_pybytes()
    write_bytes(path, data)
    return sha256_bytes(data)


def read_parts(paths: Sequence[Path]) -> Names:
    """The table in `paths`, newest first, mapped. Raises `DataError` where one is no such table."""
    tables = [SCHEMA.empty_table()]
    for path in paths:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"`{path}` is no table of names: {error!s:.200}.") from error
        if table.schema != SCHEMA:
            raise DataError(f"`{path}` is no table of names: its columns are others.")
        tables.append(table)
    return Names(pa.concat_tables(tables))
