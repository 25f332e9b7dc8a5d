"""An image and the files that have its name, by their endings: members of a tar, files of a folder.

Flows in: the contents by field. Flows out: a record. `.txt` and `.caption` hold captions, a line
each, `.cls` a label or a class name and `.json` any of the fields, beside somebody's metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.sources.base import MEDIA_SUFFIXES, BadRecord, Options, RawRecord
from pipelines.sources.columns import is_name, told
from pipelines.sources.fields import record_of

FIELD_OF = {suffix[1:]: "image" for suffix in MEDIA_SUFFIXES} | {
    "txt": "caption", "caption": "caption", "cls": "label", "json": "json",
}  # fmt: skip

_MARK = "\ufeff".encode()  # which Windows puts before a text

Sample = dict[str, bytes | Path | BadRecord]  # by field; an image may be its path


def sample_record(key: str, sample: Sample, split: str | None, options: Options) -> RawRecord:
    """The record of a sample."""
    values: dict[str, Any] = {}
    for field, content in sample.items():
        if isinstance(content, BadRecord):
            return RawRecord(key, content)
        values[field] = content
    if "json" in values:
        try:
            extra = json.loads(values.pop("json"))
            known, chosen = told(extra)
        except (ValueError, RecursionError, AttributeError):
            return RawRecord(key, BadRecord("`.json` is not a JSON object"))
        if chosen:
            options.notes[chosen] += 1
        values = known | values
    if isinstance(lines := values.get("caption"), bytes):
        values["caption"] = lines_of(lines) or lines
    if "class_name" not in values and is_name(values.get("label")):
        values["class_name"] = values.pop("label")
    if split:
        values.setdefault("split", split)
    return record_of({"id": key} | values, key, Path(), options.notes)


def lines_of(text: bytes) -> list[bytes]:
    """The captions in a file, a line each."""
    return [line for line in text.removeprefix(_MARK).splitlines() if line.strip()]
