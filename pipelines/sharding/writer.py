"""Checked rows in, `<split>-00000.parquet` files and their manifest entries out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.files import sha256_file
from trainables.shards import SCHEMA

_GROUP_BYTES = 2**24  # of images in a row group: what a writer holds, and what a reader loads

Row = dict[str, Any]


class ShardWriter:
    """One open file for each split; a row group leaves memory once it has 16 MiB of images."""

    def __init__(self, folder: Path, rows_per_shard: int) -> None:
        self.folder = folder
        self.rows_per_shard = rows_per_shard
        self._open: dict[str, _Shard] = {}
        self._done: list[_Shard] = []

    def add(self, row: Row) -> None:
        split = row["split"]
        shard = self._open.get(split)
        if shard is None:
            number = sum(done.split == split for done in self._done)
            shard = _Shard(self.folder / f"{split}-{number:05d}.parquet", split)
            self._open[split] = shard
        shard.add(row)
        if shard.rows >= self.rows_per_shard:
            self._finish(split)

    def _finish(self, split: str) -> None:
        shard = self._open.pop(split)
        shard.close()
        self._done.append(shard)

    def close(self, drop: Callable[[str], bool] | None = None) -> list[dict[str, Any]]:
        """Finish all files; the manifest's entries, without the rows whose id `drop` refuses."""
        for split in list(self._open):
            self._finish(split)
        if drop is not None:
            for shard in self._done:
                shard.rewrite_without(drop)
        shards = [s for s in self._done if s.rows]
        return [s.entry() for s in sorted(shards, key=lambda s: s.path.name)]


class _Shard:
    def __init__(self, path: Path, split: str) -> None:
        self.path, self.split = path, split
        self.rows = self.captions = 0
        self._group: list[Row] = []
        self._bytes = 0
        # Photos do not compress; statistics would repeat whole images in the footer.
        self._writer = pq.ParquetWriter(
            path, SCHEMA, compression="none", use_dictionary=["split", "class_name"],
            write_statistics=False,
        )  # fmt: skip

    def add(self, row: Row) -> None:
        self._group.append(row)
        self._bytes += len(row["image"])
        self.rows += 1
        self.captions += len(row["captions"])
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._group:
            self._writer.write_table(pa.Table.from_pylist(self._group, SCHEMA))
        self._group, self._bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def rewrite_without(self, drop: Callable[[str], bool]) -> None:
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            names = file.read(columns=["id"])["id"].to_pylist()
            gone = {name for name in names if drop(name)}
            if not gone:
                return
            kept = _Shard(self.path.with_suffix(".kept"), self.split)
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    if row["id"] not in gone:
                        kept.add(row)
        kept.close()
        kept.path.replace(self.path)
        self.rows, self.captions = kept.rows, kept.captions
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
