"""A feature store being written: safetensors files of known shape, filled in any order.

Flows in: rows of embeddings (and pixels), from any worker in any order. Flows out: files that get
their final names once complete. A finished shard is noted with the hash of its bytes, so after a
kill only missing or altered rows are computed again. Never more than a batch of images is in
memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import console
from trainables.data.tensor_file import Array, Layout, TensorFile
from trainables.data.verified import noted
from trainables.errors import DataError
from trainables.features.texts import Texts
from trainables.files import append_jsonl, read_jsonl, write_json

BLOCK = 2**22  # bytes read at once when hashing


class SplitWriter:
    """One split's file."""

    def __init__(
        self, folder: Path, split: str, texts: Texts, width: int, frames: int, size: int | None
    ) -> None:
        self.path = folder / f"{split}.safetensors"
        self.partial = folder / f"{split}.partial"
        self.progress = folder / f"{split}.progress.jsonl"
        self.texts = texts
        arrays = {
            "token_offsets": texts.tokens.offsets.numpy(),
            "caption_rows": texts.caption_rows.numpy(),
            "groups": texts.groups.numpy(),
            "token_ids": texts.tokens.ids.numpy(),
        }
        rows = len(texts.ids)
        images: Layout = {"image_embeds": (np.float32, (rows, width))}
        if frames:
            images = {**images, "frame_embeds": (np.float32, (rows, frames, width))}
        if size is not None:
            images = {**images, "pixels": (np.uint8, (rows, 3, size, size))}
        known = {name: (array.dtype.type, array.shape) for name, array in arrays.items()}
        self.file = TensorFile(self.partial, {**known, **images})
        self.items = {name: self.file.items[name] for name in images}  # bytes of one row
        self._open(arrays)

    def _open(self, arrays: dict[str, Array]) -> None:
        if self.path.exists():  # of a store without a manifest: complete or not, its shards count
            self.path.replace(self.partial)
        if not self.partial.exists() or self.partial.stat().st_size != self.file.size:
            self.partial.unlink(missing_ok=True)
            self.progress.unlink(missing_ok=True)
        kept = self.partial.exists()
        try:
            self.file.allocate()
        except OSError as error:
            if not kept:
                self.partial.unlink(missing_ok=True)
            raise DataError(
                f"`{self.partial}` needs {self.file.size:,} bytes of disk: {error.strerror}."
            ) from error
        for name, array in arrays.items():
            self.file.put(name, 0, array)

    def write(self, rows: Array, values: dict[str, Array]) -> None:
        """Put `values` (n, ...) at `rows` (n,)."""
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
        for run in runs:
            for name, array in values.items():
                self.file.put(name, int(rows[run[0]]), array[run[0] : run[-1] + 1])

    def finish_shard(self, shard: str, first: int, rows: int) -> None:
        """Note that `rows` rows from `first`, those of the shard with this hash, are there."""
        self.file.sync()
        note = {"shard": shard, "first": first, "rows": rows, "sha256": self._hash(first, rows)}
        append_jsonl(self.progress, [note])

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
                file.seek(self.file.starts[name] + first * item)
                left = rows * item
                while block := file.read(min(left, BLOCK)):
                    digest.update(block)
                    left -= len(block)
        return digest.hexdigest()

    def close(self) -> dict[str, Any]:
        """Give the complete file its name; the split's entry in the manifest."""
        self.file.sync()
        self.partial.replace(self.path)
        write_json(self.path.with_suffix(".ids.json"), self.texts.ids)
        return {
            "images": len(self.texts.ids),
            "captions": len(self.texts.tokens),
            "truncated_captions": self.texts.truncated,
            "repaired_captions": self.texts.repaired,
            "bytes": self.path.stat().st_size,
            "sha256": noted(self.path),
        }


def tell_captions(splits: Mapping[str, Mapping[str, Any]], positions: int) -> None:
    """Say how captions of a store with these entries were changed to become tokens."""
    if truncated := sum(split["truncated_captions"] for split in splits.values()):
        console.say(f"{truncated:,} captions were cut to {positions} positions.")
    if repaired := sum(split["repaired_captions"] for split in splits.values()):
        console.say(
            f"{repaired:,} captions were mended as CLIP's own tokenizer does (HTML entities, curly "
            "quotes, characters decoded wrongly); `--no-clean-text` leaves them."
        )
