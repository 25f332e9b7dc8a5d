"""Files of vectors, of any format. Of a file, never more than a chunk is in memory.

Flows in: paths. Flows out: `Vectors`, the parts of one matrix, read in order and checked on the
way: every row finite and none of them zero, or a `DataError` that names file and row.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from numpy.lib.format import open_memmap
from safetensors import SafetensorError

from pipelines.sources.containers import CONTAINERS
from trainables.data.tensor_file import Array
from trainables.errors import DataError, unknown

CHUNK = 8192  # rows
DAMAGED = (ValueError, OSError, EOFError, BadZipFile, zlib.error, SafetensorError)
SUFFIXES = (".npy", *CONTAINERS)
# What turns such a file into an array without running what is in it; for joblib there is no way.
TORCH = (
    """`x = torch.load("{}", weights_only=True)` and """
    """`numpy.save("{}", x.detach().float().numpy())`"""
)
PICKLE = (  # anything but an array's own parts is taken for a part, and fails
    """`class Arrays(pickle.Unpickler): find_class = lambda *a: {{"ndarray": numpy.ndarray, """
    """"dtype": numpy.dtype}}.get(a[2], numpy.zeros(0).__reduce__()[0])` and """
    """`numpy.save("{1}", Arrays(open("{0}", "rb")).load())`"""
)
PICKLES = {
    **dict.fromkeys((".pt", ".pth", ".bin"), TORCH),
    **dict.fromkeys((".pkl", ".pickle"), PICKLE),
    ".joblib": """where you trust it, `numpy.save("{1}", joblib.load("{0}"))`""",
}


@dataclass(frozen=True)
class Part:
    """One file, or one of the arrays in it."""

    path: Path
    shape: tuple[int, int]
    half: bool
    open: Callable[[], Iterator[Array]]  # its rows in order, `CHUNK` at a time

    @property
    def rows(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Vectors:
    """A matrix (N, e) in parts, in the order of the numbers in their names."""

    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def width(self) -> int:
        return self.parts[0].shape[1]

    @property
    def half(self) -> bool:
        """Whether half precision holds all of it."""
        return all(part.half for part in self.parts)

    def chunks(self, size: int = CHUNK) -> Iterator[Array]:
        """All rows in order, `size` at a time, (n, e): fp16 or fp32."""
        dtype, kept = (np.float16 if self.half else np.float32), []
        held = 0
        for part in self.parts:
            for chunk in part.open():
                kept.append(chunk.astype(dtype, copy=False))
                held += len(chunk)
                while held >= size:
                    block = np.concatenate(kept)
                    yield block[:size]
                    kept, held = [block[size:]], held - size
        if held:
            yield np.concatenate(kept)

    def check(self) -> None:
        """Raise at the first row that is no direction."""
        for part in self.parts:
            row = 0
            try:
                for chunk in part.open():
                    check_rows(part.path, row, chunk)
                    row += len(chunk)
            except DAMAGED as error:
                raise DataError(f"`{part.path}`, from row {row} on: {error}") from error


def check_rows(path: Path, first: int, chunk: Array) -> None:
    """Raise where a row of `chunk` is no direction; they are called from `first` on."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.square(chunk.astype(np.float32)).sum(1)
        bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
        if not len(bad):
            return
        row, norm = chunk[bad[0]], norms[bad[0]]
    wrong = "has NaN" if np.isnan(row).any() else "is too large" if norm else "is too small"
    if np.isinf(row).any() or not row.any():
        wrong = "is infinite" if row.any() else "is zero"
    raise DataError(f"`{path}`, row {first + int(bad[0])}: the vector {wrong}.")


def open_vectors(paths: Sequence[Path], side: str) -> Vectors | None:
    """The parts in `paths`, all of one width; None where the files hold none of this side."""
    found = [(path, _open(path, side)) for path in sorted(paths, key=natural)]
    parts = tuple(part for _, part in found if part is not None)
    if not parts:
        return None
    if len(parts) < len(found):
        without = next(path for path, part in found if part is None)
        raise DataError(f"`{without}` has no {side} vectors, as `{parts[0].path.name}` has.")
    for part in parts[1:]:
        if part.shape[1] != parts[0].shape[1]:
            raise DataError(
                f"`{part.path}` must have vectors of width {parts[0].shape[1]}, as "
                f"`{parts[0].path.name}` has, got {part.shape[1]}."
            )
    return Vectors(parts)


def natural(path: Path) -> list[tuple[int, str]]:
    """By the numbers in a name: part 10 comes after part 9."""
    return [(int(w), "") if w.isdigit() else (-1, w) for w in re.split(r"(\d+)", path.name)]


def _open(path: Path, side: str) -> Part | None:
    if path.suffix in PICKLES:
        convert = PICKLES[path.suffix].format(path.name, path.stem + ".npy")
        raise DataError(
            f"`{path}` is refused: it can run code when it is loaded. Convert it once, and move it "
            f"away: {convert}."
        )
    if path.suffix == ".npy":
        return _npy(path) if side == "image" else None  # one matrix, of what its folder says
    if path.suffix not in CONTAINERS:
        raise DataError(f"`{path}`: " + unknown("kind of vectors", path.suffix, SUFFIXES))
    try:
        found = CONTAINERS[path.suffix](path, side, CHUNK)
    except (*DAMAGED, KeyError, pa.ArrowException) as error:
        said = " ".join(str(error).split())
        raise DataError(f"`{path}` is no valid `{path.suffix}` file: {said}") from error
    if found is None:
        return None
    shape, dtype, chunks = found
    return Part(path, matrix(path, shape, dtype), dtype.itemsize == 2, chunks)


def matrix(path: Path, shape: Sequence[int], dtype: np.dtype[np.generic]) -> tuple[int, int]:
    """`shape`, if it is that of a matrix of floats with a row at least."""
    if dtype.hasobject:
        raise DataError(
            f"`{path}` holds Python objects, which are never unpickled: save an array of floats."
        )
    if dtype.kind != "f" or len(shape) != 2 or 0 in shape:
        raise DataError(
            f"`{path}` must hold a matrix of floats, a row for each vector, got shape "
            f"{tuple(shape)} of {dtype}."
        )
    return shape[0], shape[1]


def _npy(path: Path) -> Part:
    try:
        array = open_memmap(path, mode="r")  # which never unpickles
    except (ValueError, OSError, EOFError) as error:
        if "Python objects" in str(error):
            matrix(path, (0, 0), np.dtype(object))
        raise DataError(f"`{path}` is no array that NumPy wrote: {error}") from error
    shape = matrix(path, array.shape, array.dtype)

    def chunks() -> Iterator[Array]:
        for start in range(0, shape[0], CHUNK):  # mapped anew, or all of it would stay resident
            yield np.array(open_memmap(path, mode="r")[start : start + CHUNK])

    return Part(path, shape, array.dtype.itemsize == 2, chunks)
