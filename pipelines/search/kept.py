"""An index on disk: files that only grow, and a manifest, written last, that says how much is true.

Flows in: embeddings with the entries of their files. Flows out: the rows, mapped, and the names.

    index.json           how many rows there are, and the hash of each block and file
    rows-1.bin           (N, e) float32
    codes-1.bin          (B, 8192, e) int8, of the whole blocks
    steps-1.bin          (B, e + 1) float32, what undoes the codes
    names-1-0.arrow ...  the files of the rows, a part for each time that some were added

A kill leaves bytes that the manifest does not count; the next that adds cuts them off. Hashes are
taken when rows are written, and the files trusted as long as their sizes and times stay; where one
has changed, as in a copy, all is read through.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipelines.search.codes import BLOCK, Codes, encode
from pipelines.search.exact import Rows
from pipelines.search.names import Names, Table, read_parts, write_part
from trainables.errors import DataError
from trainables.files import read_hashed, sha256_file, sha256_json, understood, write_bytes

FORMAT, MANIFEST = "cliptune-index-2", "index.json"
PARTS = 32  # files of names before they become one
OURS = ("rows-*.bin", "codes-*.bin", "steps-*.bin", "names-*.arrow", "embeds-*.safetensors")


@dataclass
class Said:
    """What the manifest says."""

    width: int
    number: int  # in the names of the files
    rows: int = 0
    longest: float = 0.0
    blocks: list[str] = field(
        default_factory=list
    )  # a hash of each whole block: rows, codes, steps
    tail: str = sha256().hexdigest()  # of the rows after them
    parts: list[list[str]] = field(default_factory=list)  # names of files and their hashes
    stamps: dict[str, list[int]] = field(default_factory=dict)  # of all files


class Kept:
    """The index in `folder` as one manifest has it. Who adds holds the folder's lock."""

    def __init__(self, folder: Path, said: Said, names: Names) -> None:
        self.folder, self.said, self.names = folder, said, names
        self.checked = False  # whether all was read through just now
        self._tail: Tensor | None = None  # rows of no whole block yet, with those just added

    @staticmethod
    def new(folder: Path, width: int) -> Kept:
        """An index without rows, which takes no other's files."""
        folder.mkdir(parents=True, exist_ok=True)
        used = [path.stem.split("-")[1] for path in _ours(folder)]
        number = 1 + max((int(one) for one in used if one.isdecimal()), default=0)
        return Kept(folder, Said(width, number), Names())

    @staticmethod
    def open(folder: Path, width: int) -> Kept | None:
        """The index in `folder`; None where there is none. Raises `DataError` where a byte is not
        as it was written."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        value = read_hashed(path, FORMAT, sha256=str)
        with understood(path):
            said = Said(
                **{key: one for key, one in value.items() if key not in ("format", "sha256")}
            )
            if said.width != width or said.rows < 0 or said.rows // BLOCK != len(said.blocks):
                raise DataError(f"`{path}` is of another model.")
            kept = Kept(folder, said, Names())
            if any(stamp(folder / name) != known for name, known in said.stamps.items()):
                kept.verify()
            kept.names = read_parts([folder / name for name, _ in reversed(said.parts)])
        return kept

    @property
    def files(self) -> list[Path]:
        """Those of vectors: rows, codes and steps."""
        return [
            self.folder / f"{name}-{self.said.number}.bin" for name in ("rows", "codes", "steps")
        ]

    def rows(self) -> Rows:
        """All rows, mapped: they stay as they are, whatever is added."""
        width, blocks = self.said.width, len(self.said.blocks)
        values, codes, steps = self.files
        undo = _mapped(steps, np.float32, (blocks, width + 1))
        return Rows(
            values=_mapped(values, np.float32, (self.said.rows, width)),
            codes=Codes(
                values=_mapped(codes, np.int8, (blocks, BLOCK, width)),
                steps=undo[:, :width].clone(),
                misfit=undo[:, width].clone(),
            ),
            longest=self.said.longest,
        )

    def verify(self) -> None:
        """Read all through. Raises `DataError` where a byte is not as it was written."""
        rows, whole = self.rows(), len(self.said.blocks)
        for name, digest in self.said.parts:
            path = self.folder / name
            if not path.is_file() or sha256_file(path) != digest:
                raise DataError(f"`{path}` is not there, or was altered since it was written.")
        for number, values in enumerate(rows.values.split(BLOCK)):
            wanted, codes = self.said.tail, None
            if number < whole:
                wanted = self.said.blocks[number]
                codes = [
                    getattr(rows.codes, name)[number] for name in ("values", "steps", "misfit")
                ]
            if len(values) and hash_of(values, *(codes or ())) != wanted:
                raise DataError(
                    f"rows from {number * BLOCK:,} on of `{self.files[0]}` were altered."
                )
        self.said.stamps, self.checked = self._stamps(), True

    def known_by(self, rows: int) -> str:
        """A value that differs wherever one of the first `rows` does."""
        whole = rows // BLOCK
        rest = self.rows().values[whole * BLOCK : rows]
        return sha256_json([self.said.width, rows, self.said.blocks[:whole], hash_of(rest)])

    def add(self, values: Tensor) -> None:
        """Rows (n, e) float32 to the end; `commit` makes them last."""
        if self._tail is None:
            whole = len(self.said.blocks) * BLOCK
            self._tail = self.rows().values[whole:].clone()
            for path, size in zip(self.files, self._sizes(), strict=True):
                _cut(path, size)
        _append(self.files[0], values)
        self.said.rows += len(values)
        self.said.longest = max([self.said.longest, *(values.norm(dim=1) * (1 + 1e-6)).tolist()])
        self._tail = torch.cat([self._tail, values])
        while len(self._tail) >= BLOCK:
            block, self._tail = self._tail[:BLOCK], self._tail[BLOCK:].clone()
            codes, steps, misfit = encode(block)
            undo = torch.cat([steps, torch.tensor([misfit])])
            _append(self.files[1], codes)
            _append(self.files[2], undo)
            self.said.blocks.append(hash_of(block, codes, steps, undo[-1]))

    def commit(self, table: Table) -> None:
        """Make what was added last, with the entries of its files."""
        for path in self.files:
            _append(path, torch.zeros(0), durable=True)
        if self._tail is not None:
            self.said.tail = hash_of(self._tail)
        self.names = self.names.plus(table)
        old = [name for name, _ in self.said.parts]
        if len(old) >= PARTS:
            self.names = self.names.lasting()
            table, self.said.parts = self.names.table, []
        at = 1 + max((int(Path(name).stem.split("-")[2]) for name in old), default=-1)
        name = f"names-{self.said.number}-{at}.arrow"
        self.said.parts.append([name, write_part(self.folder / name, table)])
        self.write()

    def copy(self, values: Tensor, names: Names) -> None:
        """Add the rows of `values` (N, e) that an entry of `names` still has, and these."""
        table = names.lasting().table
        rows = torch.from_numpy(table["row"].to_numpy().copy())
        live = rows[rows >= 0].sort().values
        first = self.said.rows
        for some in live.split(BLOCK):
            self.add(values[some])
        moved = torch.where(rows < 0, -1, first + torch.searchsorted(live, rows))
        at = table.schema.get_field_index("row")
        self.commit(table.set_column(at, "row", pa.array(moved.numpy())))

    def write(self) -> None:
        """The manifest; what it does not name is removed."""
        self.said.stamps = self._stamps()
        value = {"format": FORMAT} | vars(self.said)
        text = json.dumps(value | {"sha256": sha256_json(value)})
        write_bytes(self.folder / MANIFEST, text.encode())
        for path in _ours(self.folder):
            if path.name not in self.said.stamps:
                path.unlink()

    def _stamps(self) -> dict[str, list[int]]:
        paths = [*self.files, *(self.folder / name for name, _ in self.said.parts)]
        return {path.name: stamp(path) for path in paths}

    def _sizes(self) -> tuple[int, int, int]:
        """Of the files of vectors, bytes."""
        width, blocks = self.said.width, len(self.said.blocks)
        return 4 * self.said.rows * width, blocks * BLOCK * width, 4 * blocks * (width + 1)


def _ours(folder: Path) -> Iterator[Path]:
    return (path for pattern in OURS for path in folder.glob(pattern))


def _mapped(path: Path, kind: Any, shape: tuple[int, ...]) -> Tensor:
    if not np.prod(shape):
        return torch.from_numpy(np.zeros(shape, kind))
    try:
        return torch.from_numpy(np.memmap(path, kind, "c", shape=shape))
    except (OSError, ValueError) as error:
        raise DataError(f"`{path}` is not there, or was cut: {error!s:.200}.") from error


def stamp(path: Path) -> list[int]:
    """A value that differs after any change or copy; of no file, nothing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def hash_of(*tensors: Tensor) -> str:
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()


def _cut(path: Path, size: int) -> None:
    """To the bytes that count; those after them are of a run that was killed."""
    with _written(path) as file:
        file.truncate(size)


def _append(path: Path, values: Tensor, durable: bool = False) -> None:
    with _written(path) as file:
        file.write(values.contiguous().numpy().data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file to add to; what the system has against it is a `DataError`."""
    try:
        with path.open("ab") as file:
            yield file
    except OSError as error:
        raise DataError(f"could not write `{path}`: {error.strerror}.") from error
