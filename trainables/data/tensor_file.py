"""A safetensors file of known shape, filled row by row, never all of it in memory.

Flows in: rows of tensors, in any order. Flows out: a file that safetensors loads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Layout = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]  # wide types first: alignment
DTYPES: dict[type[np.generic], str] = {
    np.int64: "I64",
    np.float32: "F32",
    np.int32: "I32",
    np.float16: "F16",
    np.uint8: "U8",
}


class TensorFile:
    """The file at `path`, with the tensors of `layout`. It can be loaded once all rows are put."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.items: dict[str, int] = {}  # bytes of one row
        self.starts: dict[str, int] = {}  # where a tensor begins
        entries, offset = {}, 0
        for name, (dtype, shape) in layout.items():
            self.items[name] = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
            end = offset + shape[0] * self.items[name]
            entries[name] = {
                **{"dtype": DTYPES[dtype], "shape": list(shape)},
                "data_offsets": [offset, end],
            }
            self.starts[name], offset = offset, end
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.starts = {name: len(self.header) + at for name, at in self.starts.items()}
        self.size = len(self.header) + offset

    def allocate(self) -> None:
        """Take all of the disk space now, so that a full disk (`OSError`) is known before any work
        is done. What the file already holds stays."""
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, self.size)
            file.truncate(self.size)
            file.write(self.header)

    def put(self, name: str, row: int, values: Array) -> None:
        """Write `values` (n, ...) from `row` on."""
        with self.path.open("r+b") as file:
            file.seek(self.starts[name] + row * self.items[name])
            file.write(np.ascontiguousarray(values).data)

    def sync(self) -> None:
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())
