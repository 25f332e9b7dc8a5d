"""One raw record in, one checked row or the reason against it out.

This runs in threads, in any order: it reads the file, decodes it once (a clip from end to end) so
that a broken image is found now and not in an epoch, and cleans the words. It knows nothing of the
other records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from pipelines.sources.base import BadRecord, RawRecord, split_name
from pipelines.sources.texts import Refused, caption, check_text
from trainables.data.shards import SPLITS
from trainables.errors import DataError
from trainables.files import sha256_bytes
from trainables.media.clips import Clip, is_clip
from trainables.media.frame_folders import pack
from trainables.media.image_headers import read_file
from trainables.media.images import decode, probe

OF_WORDS = {  # notes that are not of the image
    "special_token_captions",
    "blank_captions_left_out",
}
Picture: TypeAlias = tuple[bytes, str, tuple[int, int], dict[str, bool]]
Look: TypeAlias = Callable[[bytes | Path], Picture]
_SPECIAL_TOKENS = ("<|endoftext|>", "<|startoftext|>")


@dataclass(frozen=True)
class Checked:
    """A row of `trainables.data.shards.SCHEMA` with its record's `group`, and notes to be
    counted."""

    row: dict[str, Any]
    notes: tuple[str, ...]


def check_each(
    record: RawRecord, split_rule: str, look: Look | None = None
) -> list[tuple[str, Checked | BadRecord]]:
    """The outcome of each record that `record` unites, and its id. Their image is read once."""
    look = look or cache(_picture)
    return [(one.id, check(one, split_rule, look)) for one in record.apart()]


def check(record: RawRecord, split_rule: str, look: Look | None = None) -> Checked | BadRecord:
    """The row of a record. `split_rule`: "source" (by hash where the source has none),
    "val-of-train" (the source's, and a tenth of train is val), "hash", or one split for all; `look`
    reads the image."""
    if isinstance(record.image, BadRecord):
        return record.image
    try:
        check_text("id", record.id)
        if record.label is not None and record.label < 0:
            raise Refused(f"its label is {record.label}, as where labels are withheld")
        if record.label is not None and record.label >= 2**31:
            raise Refused(f"label {record.label} is outside 0 to 2147483647")
        texts = list(enumerate(record.captions, 1))
        told = [(n, text) for n, text in texts if not _is_blank(text)] or texts
        captions = [caption(text, n) for n, text in told]
        if record.class_name is not None:
            check_text("class name", record.class_name)
        elif not captions:
            if record.label is None:
                raise Refused("no caption and no class name")
            raise Refused(
                f"no caption and no class name for label {record.label} (`--columns` can take it "
                "for a name, as `class_name=cls`)"
            )
        split = record.split if split_rule in ("source", "val-of-train") else None
        if split is not None:
            check_text("split", split)
            split = split_name(split)
            if split not in SPLITS:
                raise Refused(f"unknown split {split!r:.40}")
        data, digest, size, image_notes = (look or _picture)(record.image)
    except DataError as error:  # `Refused` and `BadImage`
        return BadRecord(str(error))
    row = {
        "id": record.id,
        "image": data,
        "width": size[0],
        "height": size[1],
        "captions": captions,
        "label": record.label,
        "class_name": record.class_name,
        "split": _split(split, split_rule, digest),
        "sha256": digest,
        "classes": None,
        "group": record.group,
    }
    notes = image_notes | {
        "special_token_captions": any(mark in c for c in captions for mark in _SPECIAL_TOKENS),
        "blank_captions_left_out": len(told) < len(texts),
        "split_by_hash": split_rule == "hash" or (split_rule not in SPLITS and split is None),
    }
    return Checked(row, tuple(name for name, true in notes.items() if true))


def _is_blank(text: object) -> bool:
    return text is None or (isinstance(text, str | bytes) and not text.strip())


def _picture(image: bytes | Path) -> Picture:
    """Bytes, hash, size and notes of an image or a clip."""
    data = image if isinstance(image, bytes) else _read(image)
    return data, sha256_bytes(data), *_size_of(data)


def _size_of(data: bytes) -> tuple[tuple[int, int], dict[str, bool]]:
    """Width and height of an image or of a clip's first frame, and notes to be counted."""
    if is_clip(data):
        clip = Clip.open(data)
        return (clip.width, clip.height), {"clips": True}
    header = probe(data)
    decode(data)
    notes = {"several_pages": header.frames > 1, "exif_rotated": header.rotated}
    return (header.width, header.height), notes


def _split(split: str | None, rule: str, digest: str) -> str:
    if rule in SPLITS:
        return rule
    # By the image's own hash: stable when the source grows, and copies of it stay together.
    tenth = int(digest[:8], 16) % 10
    if rule == "val-of-train" and split == "train":
        return "val" if tenth == 8 else "train"
    if rule != "hash" and split is not None:
        return split
    return {8: "val", 9: "test"}.get(tenth, "train")


def _read(path: Path) -> bytes:
    return pack(path) if path.is_dir() else read_file(path)
