"""The first look at embeddings that were given: it finds everything that can be wrong with them.

Flows in: `Given`. Flows out: a few bytes about each row: its split, its copies, its captions and
their tokens. The vectors are read once here, and not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any, Protocol

import numpy as np
from tqdm import tqdm

from pipelines.encode.layout import Given
from pipelines.encode.metadata import Rows, labels_of, texts_of
from pipelines.sources.base import split_name
from pipelines.sources.texts import caption
from pipelines.sources.vectors import CHUNK
from trainables.data.batches import Tokens
from trainables.data.shards import POOL, SPLITS, captions_of
from trainables.data.tensor_file import Array
from trainables.errors import DataError

NAMES = (*SPLITS, POOL)


class Tokenize(Protocol):
    def __call__(self, texts: list[str], first: int) -> tuple[Tokens, int, int]:
        """Captions from number `first` of a split on, and how many were cut and mended."""


@dataclass
class Words:
    """The captions of one split as tokens, kept on disk until they are written."""

    ids: IO[bytes]
    lengths: list[Array] = field(default_factory=list)
    captions: int = 0
    truncated: int = 0
    repaired: int = 0

    def add(self, texts: list[str], tokenize: Tokenize) -> None:
        tokens, cut, repaired = tokenize(texts, self.captions)
        self.ids.write(tokens.ids.numpy().astype(np.int32).tobytes())
        self.lengths.append(tokens.lengths.numpy().astype(np.int32))
        self.captions += len(texts)
        self.truncated += cut
        self.repaired += repaired

    def offsets(self) -> Array:
        lengths = np.concatenate([np.zeros(1, np.int32), *self.lengths])
        return lengths.cumsum(dtype=np.int64)


@dataclass
class Scan:
    """The facts about all rows."""

    split: Array  # (N,) uint8, of `NAMES`
    groups: Array  # (N,) int32, equal where the vectors are
    captions: Array  # (N,) int32, how many
    labels: dict[str, int]  # of the class names
    words: dict[str, Words]

    @property
    def splits(self) -> list[str]:
        return [name for number, name in enumerate(NAMES) if (self.split == number).any()]

    def rows(self, name: str) -> Array:
        """Which rows are in split `name`."""
        return np.flatnonzero(self.split == NAMES.index(name))


def spool() -> IO[bytes]:
    return TemporaryFile()  # whoever asks closes it


def records(given: Given) -> Iterator[Rows]:
    """The metadata of all rows, a chunk at a time; empty for a row without any."""
    if given.table is not None:
        yield from given.table.chunks()
        return
    for start in range(0, given.images.rows, CHUNK):
        yield [{} for _ in range(min(CHUNK, given.images.rows - start))]


def record(row: Mapping[str, Any], number: int, labels: Mapping[str, int]) -> dict[str, Any]:
    """Row `number` as a shard has it, except for the fields that are made of its vector."""
    name, label = row.get("class_name"), row.get("label")
    if label is None and name is not None:
        label = labels.get(name)
    return {
        "id": str(row.get("id") or row.get("image") or number),
        "captions": [caption(text, n) for n, text in enumerate(texts_of(row), 1)],
        "class_name": name,
        "label": label,
    }


def digest(vector: Array) -> str:
    """The hash of a vector's own bytes."""
    return hashlib.sha256(vector.tobytes()).hexdigest()


def scan(given: Given, rule: str, tokenize: Tokenize, kept: ExitStack) -> Scan:
    """Look at all rows. `rule` says how splits are told: "source" (by hash where the metadata says
    none), "hash", or "draw". `kept` closes the files that wait on disk."""
    if given.pairs is not None:
        given.pairs.check()
    given.images.check()
    total = given.images.rows
    split, keys = np.zeros(total, np.uint8), np.zeros(total, np.uint64)
    ids, counts = np.zeros(total, np.uint64), np.zeros(total, np.int32)
    words = {name: Words(kept.enter_context(spool())) for name in NAMES}
    labels, number = labels_of(given.table), 0
    bar = kept.enter_context(tqdm(total=total, unit="row", desc="check"))
    for vectors, rows in zip(given.images.chunks(), records(given), strict=True):
        texts: dict[str, list[str]] = {name: [] for name in NAMES}
        for vector, row in zip(vectors, rows, strict=True):
            hashed = digest(vector)
            one = record(row, number, labels)
            name = _split(given, row, rule, hashed, number)
            own = _said(given, one, number)
            texts[name] += own
            split[number], counts[number] = NAMES.index(name), len(own)
            keys[number] = int(hashed[:16], 16)
            ids[number] = int.from_bytes(
                hashlib.blake2b(one["id"].encode(), digest_size=8).digest()
            )
            number += 1
        for name, some in texts.items():
            if some:
                words[name].add(some, tokenize)
        bar.update(len(rows))
    bar.close()
    _check_ids(ids, given)
    del ids
    groups = numbered(keys)
    del keys
    _check_leaks(split, groups, given)
    if rule == "draw" and not labels:
        raise DataError(
            f"`{given.folder}` must have class names for `--split draw`, got none: a draw takes "
            "some images of each class; `--split hash` divides all."
        )
    found = Scan(split, groups, counts, labels, words)
    for name in () if rule == "draw" else ("train", "val"):
        if name not in found.splits:
            there = " and ".join(f"`{split}`" for split in found.splits)
            raise DataError(
                f"`{given.folder}` must have rows in `{name}`, got {there} alone: `--split hash` "
                f"divides all rows anew{', with `--split draw` every draw does' if labels else ''}."
            )
    return found


def captions(one: Mapping[str, Any], number: int, paired: bool) -> list[str]:
    """The captions of a record. A text that is known by its embedding alone is called by its
    number."""
    if paired:
        return [text for text in one["captions"] if text.strip()][:1] or [f"text {number}"]
    return captions_of(one)


def _said(given: Given, one: Mapping[str, Any], number: int) -> list[str]:
    """The captions of a record, which must have some."""
    paired = given.pairs is not None
    if paired or one["captions"] or one["class_name"]:
        return captions(one, number, paired)
    needs = "`class_name` or `caption` in metadata, `text_emb/` with a text for each, `--captions`"
    if given.table is not None and given.table.said is not None:
        needs = "one of its file name in `--captions`"
    raise DataError(
        f"{given.where(number)}: image `{one['id']}` must have a caption or a class name: {needs}."
    )


def _split(given: Given, row: Mapping[str, Any], rule: str, hashed: str, number: int) -> str:
    if rule == "draw":
        return POOL
    if rule == "source" and row.get("split") is not None:
        name = split_name(str(row["split"]))
        if name not in SPLITS:
            raise DataError(f"{given.where(number)}: unknown split {row['split']!r:.40}.")
        return name
    # By the vector's own hash, as `cliptune shards` does with an image's.
    return {8: "val", 9: "test"}.get(int(hashed[:8], 16) % 10, "train")


def numbered(keys: Array) -> Array:
    """Numbers from 0 on, equal where `keys` (N,) are equal: int32. The same as the inverse of
    `numpy.unique`, in less than half of its memory."""
    order = np.argsort(keys, kind="stable")
    new = np.ones(len(keys), bool)
    for start in range(1, len(keys), CHUNK):
        some = keys[order[start - 1 : start + CHUNK]]
        new[start : start + CHUNK] = some[1:] != some[:-1]
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = new.cumsum(dtype=np.int32) - 1
    return numbers


def _check_ids(ids: Array, given: Given) -> None:
    numbers = numbered(ids)
    if len(numbers) and int(numbers.max()) + 1 < len(ids):
        twice = int(np.flatnonzero(np.bincount(numbers) > 1)[0])
        one, other = np.flatnonzero(numbers == twice)[:2].tolist()
        raise DataError(
            f"{given.where(other)}: its id is that of {given.where(one)}; each image needs its own."
        )


def _check_leaks(split: Array, groups: Array, given: Given) -> None:
    """Raise where a vector stands in two splits."""
    first = np.full(len(groups), 255, np.uint8)
    np.minimum.at(first, groups, split)
    odd = np.flatnonzero(first[groups] != split)
    if len(odd):
        row = int(odd[0])
        twin = int(np.flatnonzero((groups == groups[row]) & (split == first[groups[row]]))[0])
        raise DataError(
            f"{given.where(row)}: the vector is in {NAMES[split[row]]}, and again in "
            f"{NAMES[split[twin]]} ({given.where(twin)}): `--split hash` keeps equal ones together."
        )
