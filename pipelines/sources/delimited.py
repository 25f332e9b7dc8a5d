"""Rows of text files with a header: cells between commas, semicolons, tabs or bars.

Flows in: a path. Flows out: rows by the number of the line that they begin on (the header's is 1),
and the reason for lines that are not rows. Cells between tabs or bars are taken as they stand,
quotation marks and all, unless the whole file quotes by the rules of CSV.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from pipelines.sources.base import MEDIA_SUFFIXES, BadRecord
from trainables.errors import DataError

LONGEST = 2**26  # characters of a line
_HEADER = 2**16  # of the header, below what the parser takes for one cell

Row = dict[str, Any] | BadRecord


def rows(path: Path, notes: Counter[str]) -> Iterator[tuple[int, Row]]:
    names, delimiter = header(path)
    if len(set(names)) != len(names):
        raise DataError(f"`{path}` has two columns of one name in {', '.join(names)}.")
    if found := [name for name in names if _names_media(name) or "://" in name]:
        between = "<TAB>" if delimiter == "\t" else delimiter
        columns = between.join(
            "url" if "://" in name else "image" if _names_media(name) else "caption"
            for name in names
        )
        raise DataError(
            f"`{path}` has no header: its first line names an image, `{found[0]}`. Write one above "
            f"it, as `{columns}`."
        )
    quoted = delimiter in ",;" or _quotes(path, delimiter)
    if not quoted:
        notes["files in which quotation marks are no rule and stand as they are"] += 1
    for begin, end, cells in _cells(path, delimiter, quoted):
        if isinstance(cells, csv.Error):
            reason = f"malformed CSV ({cells})"
        elif len(cells) != len(names):
            reason = f"{len(cells)} cells where the header has {len(names)}"
        elif end > begin and any(_swallows(cell, len(names), delimiter) for cell in cells):
            reason = "a quotation mark that is not closed on its line swallows rows"
        else:
            yield begin, dict(zip(names, cells, strict=True))
            continue
        for line in range(begin, end + 1):  # each line that was swallowed is a bad row
            yield line, BadRecord(reason)


def header(path: Path) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter."""
    with _open(path) as file:
        line = file.readline(_HEADER)
    delimiter = max(",;|\t", key=line.count)
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])], delimiter


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):  # as Excel saves "Unicode text"
            return path.open(encoding="utf-16", errors="replace", newline="")
    # Bytes that are not UTF-8 survive as surrogates, so that only their own row is refused.
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _cells(
    path: Path, delimiter: str, quoted: bool
) -> Iterator[tuple[int, int, list[str] | csv.Error]]:
    """First line, last line and cells of each row; blank lines are skipped."""
    with _open(path) as file:
        file.readline(LONGEST)
        reader = csv.reader(
            iter(lambda: file.readline(LONGEST), ""),
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            begin = reader.line_num + 2
            try:
                found: list[str] | csv.Error = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                found = error
            if found:
                yield begin, reader.line_num + 1, found


def _quotes(path: Path, delimiter: str) -> bool:
    """Whether the file quotes by the rules: it has no error, and no quoted cell contains the end of
    a line and the delimiter, as rows between two stray quotation marks would."""
    for begin, end, cells in _cells(path, delimiter, True):
        if isinstance(cells, csv.Error):
            return False
        if end > begin and any("\n" in cell and delimiter in cell for cell in cells):
            return False
    return True


def _swallows(cell: str, columns: int, delimiter: str) -> bool:
    """Whether a line in `cell` is a row of its own, with the name of an image."""
    _, *lines = cell.splitlines()
    rows = (line.split(delimiter) for line in lines)
    return any(len(row) >= columns and any(map(_names_media, row)) for row in rows)


def _names_media(cell: str) -> bool:
    return PurePath(cell.strip()).suffix.lower() in MEDIA_SUFFIXES
