"""Checked rows in, `<split>-00000.parquet` files and their manifest entries out.

Later rows of the same record join a picture's row while it is in memory. If it is no longer, or if
they are of other records, the shard is written again at the end with the words that the ledger
kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.shards.united import Row, united
from trainables.data.shards import SCHEMA
from trainables.files import sha256_file

_GROUP_BYTES = 2**24  # of a row group: what a writer holds, and what a reader loads
_SAID_BYTES = 1000  # of a later record beside its captions


class ShardWriter:
    """One open file for each split; a row group leaves memory once it has 16 MiB."""

    def __init__(self, folder: Path, rows_per_shard: int) -> None:
        self.folder = folder
        self.rows_per_shard = rows_per_shard
        self.several = self.twice = 0  # rows of several classes, captions said before; once closed
        self._open: dict[str, _Shard] = {}
        self._done: dict[str, list[_Shard]] = {}

    def add(self, row: Row) -> int:
        """Write the first row of a picture; the number of its shard in its split."""
        split = row["split"]
        shard = self._open.get(split)
        if shard is not None and shard.rows >= self.rows_per_shard:
            self._finish(split)
            shard = None
        number = len(self._done.setdefault(split, []))
        if shard is None:
            shard = _Shard(self.folder / f"{split}-{number:05d}.parquet", split)
            self._open[split] = shard
        shard.add(row)
        return number

    def unite(self, later: Row) -> bool:
        """Let a later record of a picture join its row, if that is still in memory."""
        return self._open[later["split"]].unite(later) if later["split"] in self._open else False

    def _finish(self, split: str) -> None:
        shard = self._open.pop(split)
        shard.close()
        self._done[split].append(shard)

    def close(
        self, amend: Callable[[Row], Row | None], stale: Iterable[tuple[str, int]]
    ) -> list[dict[str, Any]]:
        """Finish all files; the manifest's entries. Of the shards in `stale`, by split and number,
        each row becomes what `amend` makes of it, or none."""
        for split in list(self._open):
            self._finish(split)
        for split, number in stale:
            self._done[split][number].rewrite(amend)
        shards = [s for done in self._done.values() for s in done if s.rows]
        self.several = sum(s.several for s in shards)
        self.twice = sum(s.twice for s in shards)
        return [s.entry() for s in sorted(shards, key=lambda s: s.path.name)]


class _Shard:
    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self.rows = self.captions = self.several = self.twice = 0
        self._group: dict[str, tuple[Row, list[Row]]] = {}  # a picture's row, and later records
        self._bytes = 0
        # Photos do not compress; statistics would repeat whole images in the footer.
        self._writer = pq.ParquetWriter(
            path, SCHEMA, compression="none", use_dictionary=["split", "class_name"],
            write_statistics=False,
        )  # fmt: skip

    def add(self, row: Row) -> None:
        if self._bytes >= _GROUP_BYTES:
            self._flush()
        self._group[row["sha256"]] = (row, [])
        self._bytes += len(row["image"])
        self.rows += 1

    def unite(self, later: Row) -> bool:
        if later["sha256"] not in self._group or self._bytes >= _GROUP_BYTES:
            return False
        self._group[later["sha256"]][1].append(later | {"image": b""})
        self._bytes += _SAID_BYTES + sum(map(len, later["captions"]))
        return True

    def _flush(self) -> None:
        rows = [united(row, later) for row, later in self._group.values()]
        self.captions += sum(len(row["captions"]) for row in rows)
        self.several += sum(row["classes"] is not None for row in rows)
        self.twice += sum(len(row["captions"]) - len({*row["captions"]}) for row in rows)
        if rows:
            self._writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        self._group, self._bytes = {}, 0

    def close(self) -> None:
        self._flush()
        self._writer.close()
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def rewrite(self, amend: Callable[[Row], Row | None]) -> None:
        kept = _Shard(self.path.with_suffix(".kept"), self.split)
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    if (amended := amend(row)) is not None:
                        kept.add(amended)
        kept.close()
        kept.path.replace(self.path)
        self.rows, self.captions = kept.rows, kept.captions
        self.several, self.twice = kept.several, kept.twice
        if not self.rows:
            self.path.unlink()

    def entry(self) -> dict[str, Any]:
        return {
            "file": self.path.name,
            "split": self.split,
            "rows": self.rows,
            "captions": self.captions,
            "sha256": sha256_file(self.path),
        }
