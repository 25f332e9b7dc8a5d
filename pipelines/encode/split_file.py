"""One split of finished embeddings, written as its rows come.

Flows in: vectors (B, e) of half or single precision, with what their source says of them. Flows
out: the split's tensors, its ids, and its records without images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.encode.layout import Given
from pipelines.encode.scan import Scan, captions, digest, numbered, record
from trainables.data.shards import RECORDS, SCHEMA
from trainables.data.tensor_file import Array, Layout, TensorFile
from trainables.data.verified import noted
from trainables.files import sha256_file

BLOCK = 2**20  # token ids copied at a time


class SplitFile:
    """One split: its tensors, its ids and its records, written as the rows come."""

    def __init__(self, folder: Path, name: str, found: Scan, given: Given, paired: bool) -> None:
        self.name, self.words, self.labels = name, found.words[name], found.labels
        self.paired = given.pairs is not None
        inside = folder / RECORDS if name == "test" else folder
        self.path = inside / f"{name}.safetensors"
        rows, width = found.rows(name), given.images.width
        dtype = np.float16 if given.images.half else np.float32
        offsets = self.words.offsets()
        layout: Layout = {
            "token_offsets": (np.int64, offsets.shape),
            "caption_rows": (np.int64, (self.words.captions,)),
            "groups": (np.int64, rows.shape),
            "token_ids": (np.int32, (int(offsets[-1]),)),
            "image_embeds": (dtype, (len(rows), width)),
        }
        if paired:
            assert given.pairs is not None
            kind = np.float16 if given.pairs.half else np.float32
            layout = {**layout, "text_embeds": (kind, (self.words.captions, width))}
        self.path.unlink(missing_ok=True)
        self.file = TensorFile(self.path, layout)
        self.file.allocate()
        self.file.put("token_offsets", 0, offsets)
        counts = found.captions[rows]
        self.file.put("caption_rows", 0, np.repeat(np.arange(len(rows)), counts))
        self.file.put("groups", 0, numbered(found.groups[rows]).astype(np.int64))
        for start, ids in self._ids():
            self.file.put("token_ids", start, ids)
        self.images, self.done = len(rows), 0
        self.ids = self.path.with_suffix(".ids.json").open("w", encoding="utf-8")
        self.table = folder / RECORDS / f"{name}-00000.parquet"
        self.writer = pq.ParquetWriter(self.table, SCHEMA, write_statistics=False)

    def _ids(self) -> Iterator[tuple[int, Array]]:
        self.words.ids.seek(0)
        start = 0
        while block := self.words.ids.read(BLOCK * 4):
            ids = np.frombuffer(block, np.int32)
            yield start, ids
            start += len(ids)

    def put(self, vectors: Array, texts: Array | None) -> None:
        self.file.put("image_embeds", self.done, vectors)
        if texts is not None:
            self.file.put("text_embeds", self.done, texts)

    def note(self, rows: list[tuple[int, dict[str, Any], Array]]) -> None:
        """What stands beside the vectors."""
        made = []
        for number, row, vector in rows:
            one = record(row, number, self.labels)
            if one["captions"] or self.paired:
                one["captions"] = captions(one, number, self.paired)
            made.append(
                {
                    **one,
                    **{"image": b"", "width": 0, "height": 0},
                    **{"split": self.name, "sha256": digest(vector)},
                }
            )
        self.writer.write_table(pa.Table.from_pylist(made, SCHEMA))
        names = ",\n".join(_quoted(one["id"]) for one in made)
        self.ids.write((",\n" if self.done else "[\n") + names)
        self.done += len(made)

    def close(self) -> dict[str, Any]:
        self.file.sync()
        self.ids.write("\n]\n")
        self.ids.close()
        self.writer.close()
        return {
            "images": self.images,
            "captions": self.words.captions,
            "truncated_captions": self.words.truncated,
            "repaired_captions": self.words.repaired,
            "bytes": self.path.stat().st_size,
            "sha256": noted(self.path),
        }

    def shard(self) -> dict[str, Any]:
        about = {"file": self.table.name, "split": self.name, "rows": self.images}
        return about | {"captions": self.words.captions, "sha256": sha256_file(self.table)}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
