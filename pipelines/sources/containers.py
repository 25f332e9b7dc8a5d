"""Vectors inside files that hold more: `.npz`, `.safetensors`, and columns of Parquet and Arrow.

Flows in: a path and the names that the vectors may have. Flows out: the shape, whether it is half
precision, and the rows in order, a chunk at a time. Nothing is unpickled.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from safetensors import safe_open

from trainables.data.tensor_file import Array
from trainables.errors import DataError

# Names of the vectors of each side; a file with one matrix needs none of them.
SIDES = {
    "image": ("image_embeds", "image_embeddings", "image_embedding", "img_emb", "image_emb"),
    "text": ("text_embeds", "text_embeddings", "text_embedding", "text_emb"),
}
ANY = ("embeds", "embeddings", "embedding", "features", "vectors", "vector", "emb")
Found = tuple[tuple[int, ...], "np.dtype[np.generic]", Callable[[], Iterator[Array]]]


def pick(path: Path, names: Sequence[str], side: str) -> str | None:
    """The one of `names` that holds the vectors of a side; None: there are no such vectors."""
    own = [name for name in names if name.lower() in SIDES[side]]
    if side == "image" and not own:
        own = [name for name in names if name.lower() in ANY] or (
            [name for name in names if len(names) == 1 and name.lower() not in SIDES["text"]]
        )
    if len(own) > 1:
        raise DataError(f"`{path}` must have one matrix of {side} vectors, got {', '.join(own)}.")
    return own[0] if own else None


def npz(path: Path, side: str, chunk: int) -> Found | None:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        name = pick(path, [n for n in names if _may_be(*_of_npz(archive, n))], side)
        if name is None:
            return None
        shape, dtype = _of_npz(archive, name)

    def chunks() -> Iterator[Array]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            _header(file)
            size = shape[1] * dtype.itemsize
            while block := file.read(chunk * size):
                yield np.frombuffer(block, dtype).reshape(-1, shape[1])

    return shape, dtype, chunks


def _may_be(shape: Sequence[int], dtype: np.dtype[np.generic]) -> bool:
    """Whether an array may be meant as vectors. Arrays of objects may, and are refused later."""
    return len(shape) > 1 or dtype.hasobject


def _of_npz(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    with archive.open(f"{name}.npy") as file:
        return _header(file)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    first = npy.read_magic(file) == (1, 0)
    read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran and len(shape) > 1:
        raise ValueError("an array must lie row by row: `numpy.ascontiguousarray(x)` makes it so.")
    return shape, dtype


def safetensors(path: Path, side: str, chunk: int) -> Found | None:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        name = pick(path, [n for n, one in slices.items() if len(one.get_shape()) > 1], side)
        if name is None:
            return None
        kind, shape = slices[name].get_dtype(), tuple(slices[name].get_shape())
    kinds: Mapping[str, Any] = {
        **{"F16": np.float16, "F32": np.float32, "F64": np.float64},
        "BF16": np.float32,  # NumPy has no name for the upper half of it
    }
    if kind not in kinds:
        raise DataError(
            f"`{path}`: the type of `{name}` must be one of {', '.join(kinds)}, got {kind}."
        )

    def chunks() -> Iterator[Array]:
        for row in range(0, shape[0], chunk):  # mapped anew, or all of it would stay resident
            with safe_open(path, framework="pt") as file:
                some = file.get_slice(name)[row : row + chunk]
            yield (some.float() if kind == "BF16" else some).numpy()

    return shape, np.dtype(kinds[kind]), chunks


def batches(path: Path, columns: Sequence[str], chunk: int) -> Iterator[pa.RecordBatch]:
    """Rows of a Parquet or Arrow file with these columns, in order."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield from file.iter_batches(chunk, columns=list(columns))
        return
    with pa.memory_map(str(path)) as file:
        for batch in pa.ipc.open_stream(file):
            some = batch.select(list(columns))
            for row in range(0, some.num_rows, chunk):
                yield some.slice(row, chunk)


def schema(path: Path) -> pa.Schema:
    if path.suffix == ".parquet":
        return pq.read_schema(path)
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).schema


def rows_of(path: Path) -> int:
    if path.suffix == ".parquet":
        return pq.read_metadata(path).num_rows
    with pa.memory_map(str(path)) as file:
        return sum(batch.num_rows for batch in pa.ipc.open_stream(file))


def class_names(about: pa.Schema, column: str) -> list[str] | None:
    """The class names behind the numbers of a column, where a Hugging Face data set has them."""
    said = json.loads((about.metadata or {}).get(b"huggingface", b"{}"))
    kind = said.get("info", {}).get("features", {}).get(column, {})
    return kind.get("names") if isinstance(kind, dict) else None


def is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return (lists or pa.types.is_fixed_size_list(kind)) and pa.types.is_floating(kind.value_type)


def column(path: Path, side: str, chunk: int) -> Found | None:
    """A column of lists of floats, all of one length."""
    about = schema(path)
    name = pick(path, [field.name for field in about if is_vector(field.type)], side)
    if name is None:
        return None
    dtype = np.dtype(about.field(name).type.value_type.to_pandas_dtype())
    first = next(batches(path, [name], 1), None)
    if first is not None and first[0][0].as_py() is None:
        raise DataError(f"`{path}`, row 0: the vector is missing.")
    width = 0 if first is None else len(first[0][0])

    def chunks() -> Iterator[Array]:
        row = 0
        for batch in batches(path, [name], chunk):
            values = batch[0]
            lengths = values.value_lengths().to_numpy(zero_copy_only=False)
            odd = np.flatnonzero(lengths != width)  # a missing one has none
            if len(odd):
                got = lengths[odd[0]]
                wrong = "is missing" if np.isnan(got) else f"must have width {width}, got {got:g}"
                raise DataError(f"`{path}`, row {row + int(odd[0])}: the vector {wrong}.")
            yield values.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            row += batch.num_rows

    return (rows_of(path), width), dtype, chunks


CONTAINERS: dict[str, Callable[[Path, str, int], Found | None]] = {
    ".npz": npz,
    ".safetensors": safetensors,
    ".parquet": column,
    ".arrow": column,
}
