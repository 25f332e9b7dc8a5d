"""From cells by field to a record: shared by every format whose fields have names.

Flows in: rows of a table, a tar sample or a Hub data set. Flows out: `RawRecord`s, with the
captions of consecutive rows of one image together.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.sources.base import BadRecord, RawRecord, inside
from pipelines.sources.columns import NUMBER
from pipelines.sources.texts import Refused, listed


def cells(row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The row's values by field; the captions of several columns are one list."""
    values: dict[str, Any] = {}
    for field, names in columns.items():
        found = [row[name] for name in names if row.get(name) is not None]
        values[field] = found if len(names) > 1 else (found[0] if found else None)
    return values


def record_of(
    values: Mapping[str, Any], default_id: str, root: Path, notes: Counter[str], table: str = ""
) -> RawRecord:
    """A record from its fields; image paths are relative to `root`. The rows of a `table` are
    grouped by the image's path, or else its id; without either, by the picture itself."""
    image = values.get("image")
    name = values.get("id")
    group = path_of(image) or ("" if name is None else str(name))
    if name is None:
        name = image if isinstance(image, str) else default_id
    try:
        return RawRecord(
            id=str(name),
            image=_image(image, root),
            captions=_captions(values.get("caption"), notes),
            label=_label(values.get("label")),
            class_name=_name(values.get("class_name")),
            # An empty cell of a split column is no split's name, not a row without splits.
            split=(values["split"] or "") if "split" in values else None,
            group=f"{table}: {group}",
        )
    except (_BadCell, Refused) as error:
        return RawRecord(str(name), BadRecord(str(error)))


def merge(records: Iterable[RawRecord]) -> Iterator[RawRecord]:
    """Consecutive records of one image, as in a table with a row a caption, become one: records
    with one path, or with the same bytes, whatever their ids. The image is then read once."""
    held: list[RawRecord] = []
    for record in records:
        if held and held[0].captions and _same(held[0], record):
            held.append(dataclasses.replace(record, image=held[0].image))  # and no other bytes
            continue
        if held:
            yield _united(held)
        held = [record]
    if held:
        yield _united(held)


def _united(held: Sequence[RawRecord]) -> RawRecord:
    if len(held) == 1:
        return held[0]
    captions = tuple(caption for record in held for caption in record.captions)
    return dataclasses.replace(held[0], captions=captions, rows=tuple(held))


def _same(held: RawRecord, record: RawRecord) -> bool:
    named = record if isinstance(record.image, bytes) else held
    own = dataclasses.replace(held, id=named.id, group=named.group, captions=record.captions)
    return own == record


def path_of(cell: Any) -> str | None:
    """The path in an image's cell, if it is one."""
    match cell:
        case {"bytes": bytes()}:
            return None
        case {"path": str(name)} | str(name):
            return slashed(name)
    return None


def slashed(name: str) -> str:
    """A path in this system's form, even if Windows wrote it."""
    return name.replace("\\", "/")


class _BadCell(Exception):
    """The reason why a cell cannot be used."""


def _image(cell: Any, root: Path) -> bytes | Path | BadRecord:
    match cell:
        case bytes() | Path():
            return cell
        case {"bytes": bytes(data)}:  # Hugging Face's `Image`
            return data
        case {"path": str(name)} | str(name):
            return inside(root, slashed(name))
        case None | [] | {"path": None}:
            raise _BadCell("no image")
        case [one]:
            return _image(one, root)
        case list():
            raise _BadCell(f"{len(cell)} images in a row: give each a row of its own")
    raise _BadCell(f"image is neither a path nor bytes ({type(cell).__name__})")


def _captions(cell: Any, notes: Counter[str]) -> tuple[str | bytes, ...]:
    captions: list[str | bytes] = []
    for text in cell if isinstance(cell, list) else () if cell is None else (cell,):
        several = listed(_decoded(text)) if isinstance(text, str | bytes) else None
        if several is not None:
            notes["a text is a list of captions"] += 1
        captions += [text] if several is None else several
    return tuple(captions)


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text


def _name(cell: Any) -> Any:
    """A class name, without blanks around it; a number stands for itself."""
    if isinstance(cell, str | bytes):
        return _decoded(cell).strip()
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell) if isinstance(cell, int) else cell


def _label(cell: Any) -> int | None:
    if cell is None or cell == "":
        return None
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "replace")
    if isinstance(cell, str) and NUMBER.fullmatch(cell.strip()):
        return int(cell.strip().partition(".")[0])
    if isinstance(cell, float) and cell.is_integer():  # pandas' labels, where one is missing
        return int(cell)
    if isinstance(cell, int) and not isinstance(cell, bool):
        return cell
    raise _BadCell(
        f"label {cell!r:.40} is not a whole number; for names use `--columns class_name=...`"
    )
