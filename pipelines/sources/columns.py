"""Which column or key means which field, shared by every format whose fields have names.

Flows in: the names of columns or keys, and a first cell where the name alone does not tell. Flows
out: field to columns; where the meaning is not clear, an error with the flag to type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.console import word
from pipelines.sources.base import FIELDS, Options
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
NUMBER = re.compile(r"-?[0-9]{1,10}(\.0*)?")
_NUMBERING = re.compile(r"|unnamed: [\d.]+|__index_level_\d+__|(comment|caption)_number")


def match_columns(names: Iterable[str], options: Options, where: str) -> dict[str, list[str]]:
    """Field to column names. `--columns` decides alone. Without it every column of `where` must be
    known, because a misspelt one would be lost in silence. Columns that number rows are noted."""
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
    caption, others = _first_family("caption", names)
    if others:
        options.notes[_instead("caption", caption, others)] += 1
    for column in names:
        if column in others:
            continue
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
    """`columns`, where the column of labels counts as that of class names if its first cell `label`
    is a name. Numbers with neither names nor captions are an error: they have no meaning."""
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
        return not label.strip() or NUMBER.fullmatch(label.strip()) is not None
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
    """The fields in a JSON object beside an image, and which of several keys was taken, in words. A
    field is taken from the first of its names, in the order above, that has a value: `caption`
    comes before `text` and `comment`. Captions are taken from a whole family, `caption_0`,
    `caption_1`."""
    values: dict[str, Any] = {}
    notes = []
    given = {key: value for key, value in metadata.items() if value is not None}
    for field in ("caption", "label", "class_name", "split"):
        keys, others = _first_family(field, given)
        found = [given[key] for key in sorted(keys, key=lambda key: (len(key), key))]
        if found:
            values[field] = found[0] if len(found) == 1 or field != "caption" else found
        if others:
            notes.append(_instead(field, keys, others))
    return values, "; ".join(notes)


def _first_family(field: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of the names that mean `field`, those of the first family in the order above; the others."""
    families: dict[str, list[str]] = {}
    for name in names:
        if field_of(name) == field:
            families.setdefault(_stem(name), []).append(name)
    first, *others = sorted(families, key=_ALIASES[field].split().index) or [""]
    return families.get(first, []), [name for one in others for name in families[one]]


def _instead(field: str, names: Iterable[str], others: Iterable[str]) -> str:
    return f"{field} by `{min(names, key=lambda one: (len(one), one))}`, not by " + ", ".join(
        f"`{name}`" for name in others
    )


def _stem(column: str) -> str:
    return re.sub(r"[_ ]?\d+$", "", column.strip().lower())
