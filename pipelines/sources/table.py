"""CSV, TSV, JSON lines, JSON and Parquet tables: one file, or a folder of them.

A row has an image (a path relative to the table, to a folder beside it or to `--images`, or in
Parquet its bytes) and captions, a class, or both. Rows of one image that follow each other, as in a
table with a row a caption, are one record. Splits are a column, or told by the names of several
files or of their folders; where tables lie in several folders, the folder is part of the id. A JSON
file is a list of objects, or an object of captions by image, `{"a.jpg": ["...", "..."]}`. Cells
between tabs or bars are taken as they stand, quotation marks and all, unless the whole file quotes
by the rules of CSV.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pipelines.console import word
from pipelines.sources.base import (
    BadRecord,
    ImageRoot,
    Options,
    RawRecord,
    files_below,
    hidden,
    split_name,
    splits_of_files,
    with_folders,
)
from pipelines.sources.columns import field_of, match_columns, with_names
from pipelines.sources.delimited import LONGEST, Row, header
from pipelines.sources.delimited import rows as _delimited
from pipelines.sources.encodings import in_utf8, not_utf8, refuse_wide, wide
from pipelines.sources.fields import cells, merge, path_of, record_of
from pipelines.sources.json_stream import entries, is_list, names_images
from trainables.errors import DataError, unknown


def read(source: str, options: Options) -> Iterator[RawRecord]:
    paths = tables(source)
    several = len({path.parent for path in paths}) > 1
    for path, split in zip(paths, file_splits(source, paths), strict=True):
        file = path.name if several else path.relative_to(source) if len(paths) > 1 else ""
        suffix = path.suffix.lower()
        if suffix != ".parquet" and not (READERS[suffix] is _delimited and wide(path) == "UTF-16"):
            refuse_wide(path)
        rows = READERS[suffix](path, options.notes)
        found = records(rows, path, split, f"{file} ".lstrip(), options)
        if several:  # the same names may be in each of the folders
            found = _named_from(path.parent.relative_to(source), found)
        yield from merge(found)


def _named_from(folder: Path, records: Iterable[RawRecord]) -> Iterator[RawRecord]:
    return (replace(one, id=str(folder / one.id) if one.id else "") for one in records)


def file_splits(source: str, paths: Sequence[Path]) -> list[str | None]:
    """The splits that several tables tell, by their names or by their folders' as in
    `train/metadata.csv`."""
    splits = splits_of_files([path.name for path in paths])
    if None in splits and len(paths) > 1:
        splits = splits_of_files([str(path.parent.relative_to(source)) for path in paths])
    return splits


def tables(source: str) -> list[Path]:
    """The table files of a source, which all have one suffix."""
    path = Path(source)
    files = sorted(filter(is_table, files_below(path))) if path.is_dir() else [path]
    suffixes = {p.suffix.lower() for p in files}
    if len(suffixes) != 1:
        found = " and ".join(sorted(suffixes)) or "none"
        one = f" To read one of them, type `--source {word(files[0])}`." if files else ""
        raise DataError(f"`{source}` must hold tables of one kind, found {found}.{one}")
    if not suffixes <= set(READERS):
        raise DataError(f"`{source}`: {unknown('kind of table', suffixes.pop(), READERS)}")
    return files


def is_table(path: Path) -> bool:
    """By its ending; the header of a `.txt` and the first object of a `.json` that is a list must
    name an image and words too, and the keys of a `.json` that is an object name images."""
    suffix = path.suffix.lower()
    if hidden(path.name) or suffix not in READERS or not path.is_file():
        return False
    if suffix not in (".txt", ".json"):
        return True
    if suffix == ".json" and not is_list(path):
        return names_images(path)
    first = header(path)[0] if suffix == ".txt" else next(entries(path))[1]
    named = {field_of(name) for name in first}
    return "image" in named and bool(named & {"caption", "label", "class_name"})


def records(
    rows: Iterator[tuple[int, Row]], path: Path, split: str | None, prefix: str, options: Options
) -> Iterator[RawRecord]:
    """The records of the numbered rows of the table `path`."""
    columns: dict[str, list[str]] = {}
    names: list[str] = []
    root = ImageRoot(options.images, with_folders(path.parent), split)
    for number, row in rows:
        where = f"{prefix}row {number}"
        options.tally.read["row"] += 1
        if isinstance(row, BadRecord):
            yield RawRecord(where, row)
            continue
        if not columns or (list(row) != names and not options.columns):  # JSONL rows may differ
            try:
                found = match_columns(row, options, str(path))
                label = cells(row, found).get("label")
                columns = with_names(found, label, options, str(path))
            except DataError as error:
                if not columns:  # the first row speaks for the table
                    raise
                yield RawRecord(where, BadRecord(str(error)))
                continue
            names = list(row)
        values = cells(row, columns)
        if split and split_name(str(told := values.setdefault("split", split))) != split:
            values["split"] = f"{told}, but {split} by its file's name"  # is none
        folder = root.of(path_of(values["image"]) or "")
        record = in_utf8(record_of(values, where, folder, options.notes, str(path)), path)
        yield from _named_from(Path(folder.name), [record]) if root.by_split else [record]


def _jsonl(path: Path, _notes: Counter[str]) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.strip().decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield number, BadRecord(not_utf8(path))
            except (ValueError, RecursionError) as error:
                yield number, BadRecord(f"malformed JSON ({error})")
            else:
                if isinstance(row, dict):
                    yield number, row
                else:
                    yield number, BadRecord("not a JSON object")


def _json(path: Path, _notes: Counter[str]) -> Iterator[tuple[int, Row]]:
    if names_images(path):
        for number, (name, found) in enumerate(groupby(entries(path), lambda one: one[0]), 1):
            yield number, {"image": name, "caption": [text for _, text in found]}
        return
    for number, (key, row) in enumerate(entries(path), 1):
        refuse_columns(path, row)
        if key:
            raise DataError(
                f"`{path}` is an object of JSON where a table is a list of objects, or an object "
                'of captions by image as {"a.jpg": ["...", "..."]}.'
            )
        yield number, row if isinstance(row, dict) else BadRecord("not a JSON object")


def refuse_columns(path: Path, value: Any) -> None:
    """Raise where `value` is the first column that pandas wrote of a table, a cell by row number:
    the whole file would have to be in memory."""
    if isinstance(value, dict) and value and all(key.isdigit() for key in value):
        script = (
            f"import pandas; pandas.read_json({str(path)!r}, dtype=False, convert_dates=False)"
            f".to_json({str(path.with_suffix('.jsonl'))!r}, orient='records', lines=True)"
        )
        raise DataError(
            f"`{path}` is a table by columns, as `to_json()` of pandas has it. Write it by rows: "
            f"`python -c {word(script)}`, and read `{path.with_suffix('.jsonl')}`."
        )


def _parquet(path: Path, _notes: Counter[str]) -> Iterator[tuple[int, Row]]:
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


READERS = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), _delimited),
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
