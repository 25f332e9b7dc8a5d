"""From named cells to a record: shared by every format whose fields have names.

Flows in: column names and rows of a table, a tar sample or a Hub data set. Flows out: `RawRecord`s,
with the captions of consecutive rows of one image together.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.console import word
from pipelines.sources.base import FIELDS, BadRecord, Options, RawRecord, inside
from pipelines.sources.texts import Refused, listed
from trainables.errors import DataError, unknown

_ALIASES = {
    "id": "id image_id img_id imgid uid key",
    "image": "image images image_path image_name image_file img path file file_name filename "
    "filepath video video_path clip clip_path",
    "caption": "caption captions text texts sentence sentences comment description",
    "label": "label target class_id",
    "class_name": "class_name classname class category",
    "split": "split partition subset",
}
_FIELD_OF = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}
_ADDRESSES = ("url", "urls", "image_url", "img_url", "image_link", "link")
_LISTS = ("csv", "tsv", "jsonl", "parquet")  # what img2dataset reads
# Columns that number rows: pandas' index, without a name, as CSV and Parquet have it; Flickr30k's.
_NUMBER = re.compile(r"-?[0-9]{1,10}(\.0*)?")
_NUMBERING = re.compile(r"|unnamed: [\d.]+|__index_level_\d+__|(comment|caption)_number")


def match_columns(names: Iterable[str], options: Options, where: str) -> dict[str, list[str]]:
    """Field to column names. `--columns` decides alone; without it every column of `where` must be
    known, because a misspelt one would be lost in silence. Those that number rows are noted."""
    names, given = list(names), options.columns
    if "image" not in given:
        _refuse_addresses(names, where)
    if given:
        for column in (c for columns in given.values() for c in columns):
            if column not in names:
                raise DataError(f"`{where}`: {unknown('column', column, names)}")
        found = {name: list(columns) for name, columns in given.items()}
    else:
        found = _by_name(names, options, where)
    for field, columns in found.items():
        if len(columns) > 1 and field != "caption":
            both = " and ".join(f"`{c}`" for c in columns)
            raise DataError(f"`{where}`: {both} both name the {field}; choose with `--columns`.")
    if "image" not in found:
        raise DataError(f"`{where}` has no image column; name it with `--columns image=...`.")
    return found


def _by_name(names: Sequence[str], options: Options, where: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    unknown_names = []
    for column in names:
        if _NUMBERING.fullmatch(column.strip().lower()):
            options.notes[f"column {column.strip()!r} numbers rows and is left out"] += 1
        elif field := field_of(column):
            found.setdefault(field, []).append(column)
        else:
            unknown_names.append(column)
    if unknown_names:
        line = _line(found if len(found) > 1 else {"image": ["path"], "caption": ["title"]})
        raise DataError(
            f"`{where}`: {unknown('column', unknown_names[0], FIELDS)} "
            f"Or name the columns to read, as in `{line}`: all others are then left out."
        )
    return found


def with_names(
    columns: dict[str, list[str]], label: Any, options: Options, where: str
) -> dict[str, list[str]]:
    """`columns`, where the one of labels is that of the class names if it holds these, as its first
    cell `label` tells. Numbers with neither names nor captions are an error: they say nothing."""
    if "label" not in columns or "class_name" in columns:
        return columns
    column = columns["label"]
    if is_name(label) and not options.columns:
        options.notes[f"column {column[0]!r} has names of classes"] += 1
        others = {name: found for name, found in columns.items() if name != "label"}
        return others | {"class_name": column}
    if "caption" not in columns and _is_number(label):
        line = _line(columns | {"class_name": column})
        raise DataError(
            f"`{where}` has numbers of classes (`{column[0]}`, such as {label}) and neither names "
            f"nor captions. To take the numbers for names, type `{line}`."
        )
    return columns


def is_name(label: Any) -> bool:
    """Whether a label is the name of a class: a text that is no number, or yes or no."""
    if isinstance(label, bytes):
        label = label.decode("utf-8", "replace")
    return isinstance(label, bool) or (isinstance(label, str) and not _is_number(label))


def _is_number(label: Any) -> bool:
    if isinstance(label, str):
        return not label.strip() or _NUMBER.fullmatch(label.strip()) is not None
    return isinstance(label, int | float)


def _line(columns: Mapping[str, Sequence[str]]) -> str:
    """The flag that chooses these columns."""
    pairs = (f"{name}={column}" for name, found in columns.items() for column in found)
    return "--columns " + " ".join(map(word, pairs))


def _refuse_addresses(names: Sequence[str], where: str) -> None:
    """Raise where images are only addresses, as in LAION's tables: nothing is downloaded here."""
    address = next((name for name in names if name.strip().lower() in _ADDRESSES), None)
    if address is None or "image" in map(field_of, names):
        return
    text = next((name for name in names if field_of(name) == "caption"), None)
    kind = Path(where).suffix.lstrip(".").lower()
    table, kind = (word(where), kind) if kind in _LISTS else ("TABLE.parquet", "parquet")
    caption = f" --caption_col {word(text)}" if text else ""
    raise DataError(
        f"`{where}` has addresses of images (`{address}`) and no images. Download them first: "
        f"`img2dataset --url_list {table} --input_format {kind} --url_col {word(address)}{caption} "
        "--output_format webdataset --output_folder images --resize_mode keep_ratio` (as it is, it "
        "pads with white), and then `cliptune shards --source images`."
    )


def field_of(column: str) -> str | None:
    """The field that a column means by its name; `caption_0`, `caption_1`, ... are captions."""
    return _FIELD_OF.get(_stem(column))


def told(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What a JSON object beside an image says of it, by field, and which of several keys was taken,
    in words. A field is told by the first of its names, in the order above, that has a value: by
    `caption` before `text` and `comment`; of captions by a whole family, `caption_0`, `caption_1`.
    """
    values: dict[str, Any] = {}
    notes = []
    given = {key: value for key, value in metadata.items() if value is not None}
    for field in ("caption", "label", "class_name", "split"):
        families: dict[str, list[str]] = {}
        for key in given:
            if field_of(key) == field:
                families.setdefault(_stem(key), []).append(key)
        if not families:
            continue
        order = _ALIASES[field].split()
        first, *others = sorted(families, key=order.index)
        keys = sorted(families[first], key=lambda key: (len(key), key))
        found = [given[key] for key in keys]
        values[field] = found[0] if len(found) == 1 or field != "caption" else found
        if others:
            left = ", ".join(f"`{key}`" for name in others for key in families[name])
            notes.append(f"{field} by `{keys[0]}`, not by {left}")
    return values, "; ".join(notes)


def _stem(column: str) -> str:
    return re.sub(r"[_ ]?\d+$", "", column.strip().lower())


def cells(row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The row's values by field; the captions of several columns are one list."""
    values: dict[str, Any] = {}
    for field, names in columns.items():
        found = [row[name] for name in names if row.get(name) is not None]
        values[field] = found if len(names) > 1 else (found[0] if found else None)
    return values


def record_of(
    values: Mapping[str, Any], default_id: str, root: Path, notes: Counter[str]
) -> RawRecord:
    """A record from its fields; image paths are relative to `root`."""
    image = values.get("image")
    name = values.get("id")
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
        )
    except (_BadCell, Refused) as error:
        return RawRecord(str(name), BadRecord(str(error)))


def merge(records: Iterable[RawRecord]) -> Iterator[RawRecord]:
    """Consecutive records of one image, as in a table with a row a caption, become one: those of
    one path, or of the same bytes, whatever their ids. The image is then read once."""
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
    rows = tuple((record.id, len(record.captions)) for record in held)
    return dataclasses.replace(held[0], captions=captions, rows=rows)


def _same(held: RawRecord, record: RawRecord) -> bool:
    own = record.id if isinstance(record.image, bytes) else held.id
    return dataclasses.replace(held, id=own, captions=record.captions) == record


def path_of(cell: Any) -> str | None:
    """The path that an image's cell is, if it is one."""
    match cell:
        case {"bytes": bytes()}:
            return None
        case {"path": str(name)} | str(name):
            return slashed(name)
    return None


def slashed(name: str) -> str:
    """A path as it is here, also one that Windows wrote."""
    return name.replace("\\", "/")


class _BadCell(Exception):
    """The reason why a cell cannot be used."""


def _image(cell: Any, root: Path) -> bytes | Path | BadRecord:
    match cell:
        case bytes():
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
    """A class name; a number stands for itself."""
    if isinstance(cell, bytes):
        return _decoded(cell).strip()
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell) if isinstance(cell, int) else cell


def _label(cell: Any) -> int | None:
    if cell is None or cell == "":
        return None
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "replace")
    if isinstance(cell, str) and _NUMBER.fullmatch(cell.strip()):
        return int(cell.strip().partition(".")[0])
    if isinstance(cell, float) and cell.is_integer():  # pandas' labels, where one is missing
        return int(cell)
    if isinstance(cell, int) and not isinstance(cell, bool):
        return cell
    raise _BadCell(
        f"label {cell!r:.40} is not a whole number; for names use `--columns class_name=...`"
    )
