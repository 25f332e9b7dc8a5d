"""Metadata of the rows: Parquet files beside the vectors, or columns beside theirs.

Flows in: the files. Flows out: each row by the fields that its columns mean, and the classes of all
with their numbers; an error in a row is named with its file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import split_of_name, splits_of_files
from pipelines.sources.columns import field_of
from pipelines.sources.containers import batches, class_names, is_vector, rows_of, schema
from pipelines.sources.gather import Gather
from pipelines.sources.texts import Refused, caption, check_text
from pipelines.sources.vectors import CHUNK
from trainables.errors import DataError

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """Parquet files of metadata, a row for each vector."""

    paths: tuple[Path, ...]
    said: Gather | None = None  # what `read_said` gathered, instead of its own captions

    @property
    def rows(self) -> int:
        return sum(rows_of(path) for path in self.paths)

    def where(self, number: int) -> str:
        """The file and the row in it of row `number` of all."""
        return where([(path, rows_of(path)) for path in self.paths], number)

    def chunks(self, size: int = CHUNK) -> Iterator[Rows]:
        """All rows in order, `size` at a time, by the names of the fields that they mean."""
        for rows in self._chunks(size):
            if self.said is not None:
                for row in rows:
                    row["caption"] = self._captions(row)
            yield rows

    def _split_of(self, path: Path) -> str | None:
        """The split that a folder of a saved data set tells, or the file's name."""
        own = split_of_name(path.parent.name) if path.suffix == ".arrow" else None
        return own or dict(zip(self.paths, self.splits, strict=True))[path]

    @property
    def splits(self) -> list[str | None]:
        return splits_of_files([path.name for path in self.paths])

    def _captions(self, row: dict[str, Any]) -> list[str]:
        assert self.said is not None
        name = Path(str(row.get("image") or row.get("id"))).name
        found = [value.decode().split("\0", 1) for value in self.said[name]]
        if len(images := list(dict.fromkeys(id_ for id_, _ in found))) > 1:
            both = f"`{images[0]}` and `{images[1]}`"
            raise DataError(f"`--captions` must have one image called `{name}`, got {both}.")
        return [text for _, text in found]

    def _chunks(self, size: int) -> Iterator[Rows]:
        kept: Rows = []
        for path in self.paths:
            about = schema(path)
            fields = _fields(path, about)
            wanted = list(itertools.chain(*fields.values()))
            split, names = self._split_of(path), None
            if "label" in fields and "class_name" not in fields:
                names = class_names(about, fields["label"][0])
            for batch in batches(path, wanted or about.names[:1], size):
                columns = {field: _values(batch, own) for field, own in fields.items()}
                columns.setdefault("split", [split] * batch.num_rows)
                if names:
                    columns["class_name"] = [_called(label, names) for label in columns["label"]]
                kept += [
                    dict(zip(columns, row, strict=True))
                    for row in zip(*columns.values(), strict=True)
                ]
                while len(kept) >= size:
                    yield kept[:size]
                    kept = kept[size:]
        if kept:
            yield kept


def _fields(path: Path, about: pa.Schema) -> dict[str, list[str]]:
    """The columns of each field: captions may have several, names of a row the first of them."""
    found: dict[str, list[str]] = {}
    for column in about:
        field = None if is_vector(column.type) else field_of(column.name)
        if field is not None:
            found.setdefault(field, []).append(column.name)
    for field, columns in found.items():
        if field in ("id", "image"):
            del columns[1:]
        if len(columns) > 1 and field != "caption":
            both = " and ".join(f"`{name}`" for name in columns)
            raise DataError(f"`{path}`: {both} both name the {field}; leave one of them.")
    return found


def _values(batch: pa.RecordBatch, columns: Sequence[str]) -> list[Any]:
    every = [batch[name].to_pylist() for name in columns]
    if len(every) == 1:
        return every[0]
    return [[one for one in row if one is not None] for row in zip(*every, strict=True)]


def _called(label: Any, names: list[str]) -> str | None:
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else None


def where(parts: Iterable[tuple[Path, int]], number: int) -> str:
    for path, rows in parts:
        if number < rows:
            return f"`{path}`, row {number}"
        number -= rows
    raise IndexError(number)


def labels_of(table: Table | None) -> dict[str, int]:
    """A number for each class name; where the metadata has none, in alphabetical order."""
    if table is None:
        return {}
    numbers: dict[str, int | None] = {}
    names: dict[int | str, str] = {}  # of labels; of classes without one, by what case leaves
    every = (row for rows in table.chunks() for row in rows)
    for number, row in enumerate(every):
        wrong = _wrong(row)
        name, label = row.get("class_name"), row.get("label")
        if not wrong and name is not None and numbers.setdefault(name, label) != label:
            wrong = f"class `{name}` must have one label, got {numbers[name]} and {label}"
        if not wrong and name is not None:
            wrong = _unlike(name, label, names)
        if wrong:
            raise DataError(f"{table.where(number)}: {wrong}.")
    own = {name: place for place, name in enumerate(sorted(numbers))}
    found = {name: own[name] if label is None else label for name, label in numbers.items()}
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _unlike(name: str, label: int | None, names: dict[int | str, str]) -> str:
    """How a class contradicts those before it; empty: it does not."""
    one = name.casefold() if label is None else label
    if names.setdefault(one, name) != name:
        what = "what differs in case alone" if label is None else f"label {label}"
        return f"{what} must be one class, got `{names[one]}` and `{name}`"
    if isinstance(next(iter(names)), str) != isinstance(one, str):
        return f"all classes must have a label, or none, got {label} for `{name}`"
    return ""


def texts_of(row: Mapping[str, Any]) -> list[Any]:
    """The captions of a row of metadata, unchecked."""
    said = row.get("caption")
    return said if isinstance(said, list) else [] if said is None else [said]


def _wrong(row: Mapping[str, Any]) -> str:
    """The error in a row of metadata; empty: none."""
    name, label = row.get("class_name"), row.get("label")
    if label is not None and (not isinstance(label, int) or isinstance(label, bool)):
        return f"`label` must be a whole number, got {label!r:.40}"
    if label is not None and abs(label) >= 2**31:
        return f"`label` must be below 2,147,483,648, got {label}"
    try:
        if name is not None:
            check_text("class name", name)
        for n, text in enumerate(texts_of(row), 1):
            caption(text, n)
    except Refused as error:
        return str(error)
    return ""
