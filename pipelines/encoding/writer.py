"""A feature store being written: safetensors files of known shape, filled in any order.

Flows in: rows of embeddings (and pixels), from any worker in any order. Flows out: files that get
their final names once complete. A finished shard is noted with the hash of its bytes, so after a
kill only what is missing, or is not what it was, is computed again. Of images, never more than a
batch is in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from trainables.errors import DataError
from trainables.features import Texts
from trainables.files import append_jsonl, read_jsonl, sha256_file, write_json

Array = np.ndarray[Any, Any]
DTYPES = {"int64": "I64", "float32": "F32", "int32": "I32", "uint8": "U8"}
BLOCK = 2**22  # bytes read at once when hashing


class SplitWriter:
    """One split's file."""

    def __init__(
        self, folder: Path, split: str, texts: Texts, width: int, size: int | None
    ) -> None:
        self.path = folder / f"{split}.safetensors"
        self.partial = folder / f"{split}.partial"
        self.progress = folder / f"{split}.progress.jsonl"
        self.texts = texts
        arrays = {
            "token_offsets": texts.tokens.offsets.numpy(),
            "caption_rows": texts.caption_rows.numpy(),
            "groups": texts.groups.numpy(),
        }
        rows = len(texts.ids)
        # Wide types first, so that each tensor begins at a multiple of its item's size.
        layout: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = [
            *((name, array.dtype, array.shape) for name, array in arrays.items()),
            ("image_embeds", np.dtype(np.float32), (rows, width)),
            ("token_ids", np.dtype(np.int32), (len(texts.tokens.ids),)),
        ]
        arrays["token_ids"] = texts.tokens.ids.numpy()
        if size is not None:
            layout.append(("pixels", np.dtype(np.uint8), (rows, 3, size, size)))
        header, self.starts, end = _header(layout)
        self.items = {  # bytes of one row
            name: int(np.prod(shape[1:])) * dtype.itemsize
            for name, dtype, shape in layout
            if name not in arrays
        }
        self._open(header, arrays, end)

    def _open(self, header: bytes, arrays: dict[str, Array], end: int) -> None:
        if self.path.exists():  # of a store without a manifest: complete or not, its shards count
            self.path.replace(self.partial)
        kept = self.partial.exists() and self.partial.stat().st_size == end
        if not kept:
            self.progress.unlink(missing_ok=True)
        with self.partial.open("r+b" if kept else "w+b") as file:
            try:
                # All of the disk that is needed, now: a full one is known before any work is done.
                os.posix_fallocate(file.fileno(), 0, end)
            except OSError as error:
                self.partial.unlink()
                raise DataError(
                    f"`{self.partial}` needs {end:,} bytes of disk: {error.strerror}."
                ) from error
            file.write(header)
            for name, array in arrays.items():
                file.seek(self.starts[name])
                file.write(array.tobytes())

    def write(self, rows: Array, values: dict[str, Array]) -> None:
        """Put `values` (n, ...) at `rows` (n,)."""
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
        with self.partial.open("r+b") as file:
            for run in runs:
                for name, array in values.items():
                    file.seek(self.starts[name] + int(rows[run[0]]) * self.items[name])
                    file.write(np.ascontiguousarray(array[run[0] : run[-1] + 1]).data)

    def finish_shard(self, shard: str, first: int, rows: int) -> None:
        """Note that `rows` rows from `first`, those of the shard with this hash, are there."""
        self._sync()
        note = {"shard": shard, "first": first, "rows": rows, "sha256": self._hash(first, rows)}
        append_jsonl(self.progress, [note])

    def _sync(self) -> None:
        with self.partial.open("r+b") as file:
            os.fsync(file.fileno())

    def finished(self) -> set[tuple[str, int]]:
        """(hash, first row) of the shards that an earlier run wrote and that are still intact."""
        notes = [
            note
            for note in read_jsonl(self.progress)
            if note["sha256"] == self._hash(note["first"], note["rows"])
        ]
        self.progress.unlink(missing_ok=True)
        append_jsonl(self.progress, notes)  # without what is torn or no longer true
        return {(note["shard"], note["first"]) for note in notes}

    def _hash(self, first: int, rows: int) -> str:
        digest = hashlib.sha256()
        with self.partial.open("rb") as file:
            for name, item in self.items.items():
                file.seek(self.starts[name] + first * item)
                left = rows * item
                while block := file.read(min(left, BLOCK)):
                    digest.update(block)
                    left -= len(block)
        return digest.hexdigest()

    def close(self) -> dict[str, Any]:
        """Give the complete file its name; the split's entry in the manifest."""
        self._sync()
        self.partial.replace(self.path)
        write_json(self.path.with_suffix(".ids.json"), self.texts.ids)
        return {
            "images": len(self.texts.ids),
            "captions": len(self.texts.tokens),
            "truncated_captions": self.texts.truncated,
            "bytes": self.path.stat().st_size,
            "sha256": sha256_file(self.path),
        }


def _header(
    layout: list[tuple[str, np.dtype[Any], tuple[int, ...]]],
) -> tuple[bytes, dict[str, int], int]:
    """The head of a safetensors file, where each tensor starts in the file, and the file's size."""
    entries, offset, offsets = {}, 0, {}
    for name, dtype, shape in layout:
        size = int(np.prod(shape)) * dtype.itemsize
        entries[name] = {
            **{"dtype": DTYPES[dtype.name], "shape": list(shape)},
            "data_offsets": [offset, offset + size],
        }
        offsets[name] = offset
        offset += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: start + at for name, at in offsets.items()}, start + offset
