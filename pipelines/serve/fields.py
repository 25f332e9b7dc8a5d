"""What is known of images beside their pixels, and which of them a filter leaves.

Flows in: `metadata.csv`, `.jsonl` or `.parquet` in a folder, with a `file_name` column as Hugging
Face's image folders have it; and a filter, `{"city": "Rome", "year": {"from": 1990}}`. Flows out: a
table of N rows, and a mask (N,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import torch
from torch import Tensor

from trainables.errors import ConfigError, DataError, unknown

FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
KEY = "file_name"
BOUNDS = {"from": pc.greater_equal, "to": pc.less_equal}
SHOWN = 50  # different values of a field that are listed


def fields_of(folder: Path, names: Sequence[str]) -> pa.Table:
    """A row for each of the images `names`: the folder that it lies in, and what the metadata file
    says of it, if there is one. What it does not name has nulls."""
    places = pa.array([str(Path(name).parent) for name in names])
    table = pa.table({"folder": places})
    paths = [path for name in FILES if (path := folder / name).is_file()]
    if len(paths) > 1:
        raise DataError(f"`{folder}` must have one file of metadata, got {' and '.join(FILES)}.")
    if not paths:
        return table
    said = _read(paths[0])
    rows = {name: row for row, name in enumerate(said[KEY].to_pylist())}
    if len(rows) < len(said):
        raise DataError(f"`{paths[0]}`: each `{KEY}` must stand once.")
    if not rows.keys() & {*names}:
        raise DataError(f"`{paths[0]}`: no `{KEY}` is of an image in the folder, as {names[0]} is.")
    taken = said.take(pa.array([rows.get(name) for name in names], pa.int64()))
    for name in said.column_names:
        if name not in (KEY, "folder") and _plain(said.schema.field(name).type):
            table = table.append_column(name, taken[name])
    return table


def _read(path: Path) -> pa.Table:
    readers = {".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json}
    try:
        table = readers.get(path.suffix, pq.read_table)(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"`{path}` cannot be read: {str(error).splitlines()[0]}") from error
    if KEY not in table.column_names:
        raise DataError(f"`{path}`: " + unknown("column", KEY, table.column_names))
    return table.set_column(table.column_names.index(KEY), KEY, table[KEY].cast(pa.string()))


def _plain(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) or _words(kind)


def _words(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def about(table: pa.Table) -> list[dict[str, Any]]:
    """The fields as a client is told: name, type and, of words that are few, the values."""
    found = []
    for name in table.column_names:
        column = table[name]
        values = pc.unique(column).drop_null() if _words(column.type) else pa.array([], pa.string())
        few = sorted(values.to_pylist()) if len(values) <= SHOWN else []
        found.append({"name": name, "type": str(column.type), "values": few})
    return found


def row(table: pa.Table, number: int) -> dict[str, Any]:
    """What is known of one image, as JSON has it."""
    return {name: _json(one) for name, one in table.slice(number, 1).to_pylist()[0].items()}


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def mask(table: pa.Table, where: dict[str, Any]) -> Tensor | None:
    """Which of N images have all of `where`: (N,) bool; None for all. A value is equal, a list
    holds one that is, `{"from": a, "to": b}` goes from a through b. Nulls have nothing."""
    if not where:
        return None
    kept = np.ones(len(table), dtype=bool)
    for name, wanted in where.items():
        if name not in table.column_names:
            raise ConfigError("`where`: " + unknown("field", name, table.column_names))
        kept &= _matches(table[name], name, wanted)
    return torch.from_numpy(kept)


def _matches(column: pa.ChunkedArray, name: str, wanted: Any) -> Any:
    """A boolean of NumPy for each row."""
    try:
        if isinstance(wanted, dict):
            if not wanted or wanted.keys() - BOUNDS.keys():
                raise ConfigError(
                    f"`where`: `{name}` must have `from` and `to`, got {str(wanted)[:60]}."
                )
            found = [BOUNDS[key](column, _as(column, one)) for key, one in wanted.items()]
        else:
            values = wanted if isinstance(wanted, list) else [wanted]
            each = [_as(column, one) for one in values]
            found = [pc.is_in(column, pa.array([one.as_py() for one in each], column.type))]
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"`where`: `{name}` is of {column.type}, and cannot be {str(wanted)[:60]}."
        ) from error
    kept = np.ones(len(column), dtype=bool)
    for one in found:
        kept &= np.asarray(one.fill_null(False).to_numpy(), dtype=bool)
    return kept


def _as(column: pa.ChunkedArray, value: Any) -> pa.Scalar:
    """`value` in the column's type; nothing is rounded, and words are no numbers."""
    words = _words(column.type)
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if value is None or (words != isinstance(value, str) and (words or numbers)):
        raise ValueError("another type")
    if isinstance(value, str) and not words:  # a date, as it is written
        return pa.scalar(value).cast(column.type)
    if isinstance(value, float) and pa.types.is_integer(column.type):
        return pa.scalar(value, pa.float64())
    return pa.scalar(value, column.type)
