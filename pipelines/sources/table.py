"""CSV, TSV, JSONL and Parquet tables: one file, or a folder of them.

A row has an image (a path relative to the table or to `--images`, or in Parquet its bytes) and
captions, a class, or both. Rows of one image that follow each other, as in a table with a row a
caption, are one record. Splits are a column, or told by the names of several files or of their
folders.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sources.base import BadRecord, Options, RawRecord, image_root, splits_of_files
from pipelines.sources.fields import cells, match_columns, merge, record_of
from trainables.errors import DataError, unknown

_LONGEST = 2**26  # bytes of a line

Row = dict[str, Any] | BadRecord


def read(source: str, options: Options) -> Iterator[RawRecord]:
    paths = tables(source)
    splits = splits_of_files([path.name for path in paths])
    if None in splits and len(paths) > 1:  # as in train/metadata.csv
        splits = splits_of_files([str(path.parent.relative_to(source)) for path in paths])
    for path, split in zip(paths, splits, strict=True):
        prefix = f"{path.relative_to(source)} " if len(paths) > 1 else ""
        yield from merge(_records(path, split, prefix, options))


def tables(source: str) -> list[Path]:
    """The table files of a source, which all have one suffix."""
    path = Path(source)
    files = [p for p in sorted(path.rglob("*")) if p.suffix in READERS] if path.is_dir() else [path]
    suffixes = {p.suffix for p in files}
    if len(suffixes) != 1:
        found = " and ".join(sorted(suffixes)) or "none"
        raise DataError(f"`{source}` must hold tables of one kind, found {found}.")
    if not suffixes <= set(READERS):
        raise DataError(f"`{source}`: {unknown('kind of table', suffixes.pop(), READERS)}")
    return files


def _records(path: Path, split: str | None, prefix: str, options: Options) -> Iterator[RawRecord]:
    columns: dict[str, list[str]] = {}
    names: list[str] = []
    root = options.images
    for number, row in READERS[path.suffix](path):
        where = f"{prefix}row {number}"
        if isinstance(row, BadRecord):
            yield RawRecord(where, row)
            continue
        if not columns or (list(row) != names and not options.columns):  # JSONL rows may differ
            try:
                columns = match_columns(row, options.columns, str(path))
            except DataError as error:
                if not columns:  # the first row speaks for the table
                    raise
                yield RawRecord(where, BadRecord(str(error)))
                continue
            names = list(row)
        values = cells(row, columns)
        if root is None and isinstance(values["image"], str):
            root = image_root([path.parent, path.parent / "images"], values["image"])
        if split:
            values.setdefault("split", split)
        yield record_of(values, where, root or path.parent)


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows by the number of the line that they begin on; the header is line 1."""
    # Bytes that are not UTF-8 survive as surrogates, so that only their own row is refused.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.readline(_LONGEST)
        delimiter = max(",;|\t", key=header.count)
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if len(set(names)) != len(names):
            raise DataError(f"`{path}` has two columns of one name in {', '.join(names)}.")
        reader = csv.reader(
            iter(lambda: file.readline(_LONGEST), ""), delimiter=delimiter, strict=True
        )
        while True:
            begin = reader.line_num + 2
            try:
                row = next(reader)
                if len(row) == len(names):
                    yield begin, dict(zip(names, row, strict=True))
                    continue
                reason = f"{len(row)} cells where the header has {len(names)}"
            except StopIteration:
                return
            except csv.Error as error:
                row, reason = [""], f"malformed CSV ({error})"
            if row:  # a blank line is none
                # A stray quote swallows lines: each of them counts as a bad row.
                for line in range(begin, reader.line_num + 2):
                    yield line, BadRecord(reason)


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.strip().decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield number, BadRecord("not UTF-8")
            except (ValueError, RecursionError) as error:
                yield number, BadRecord(f"malformed JSON ({error})")
            else:
                if isinstance(row, dict):
                    yield number, row
                else:
                    yield number, BadRecord("not a JSON object")


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            for batch in file.iter_batches(batch_size=16):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        yield number, {n: batch[n][index].as_py() for n in batch.schema.names}
                    except UnicodeDecodeError:
                        yield number, BadRecord("not UTF-8")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"`{path}` is not valid Parquet after row {number:,}: {error}") from error


READERS = {".csv": _csv, ".tsv": _csv, ".txt": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
