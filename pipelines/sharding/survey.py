"""What a source looks like, said before it is read.

Flows in: a source and how it will be read. Flows out: lines that say its format and why it is that
one, the files by ending, what is read of them and what is not, where the splits come from, and the
first records. Nothing is written, and the looking ends after a number of files, of records and of
seconds, whatever the size.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Thread

from pipelines.sharding.records import Picture, check_each
from pipelines.sources import coco, cub, flickr_token, folder, table, text_folder, webdataset
from pipelines.sources.base import (
    MEDIA_SUFFIXES,
    BadRecord,
    Options,
    RawRecord,
    ending,
    split_name,
    split_of_name,
    walk,
)
from pipelines.sources.registry import SIGNS, SOURCES
from pipelines.sources.samples import FIELD_OF
from pipelines.sources.texts import Refused
from trainables.errors import DataError
from trainables.files import sha256_bytes
from trainables.shards import SPLITS

FILES = 100_000
RECORDS = 1_000
FILE_SECONDS, SECONDS = 2.0, 5.0  # for the files, and for the records
SHOWN = 3

# What says the split of a record, where neither the names of files nor of folders do.
SAID_BY = {
    "karpathy": "`split` of each entry",
    "table": "the split column",
    "zhou": "the lists of the JSON",
    "text_folder": f"`{cub.SPLIT}`",
    **dict.fromkeys(("webdataset", "sidecar", "img2dataset"), "`split` in each sample's `.json`"),
    "huggingface": "the data set's own splits",
}


@dataclass
class Files:
    """The files of a source by ending; `more`: there are others, which were not looked at."""

    found: Counter[str] = field(default_factory=Counter)
    read: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    more: bool = False


def files_of(source: str, name: str) -> Iterator[str]:
    """Lines about the files, of which no content is read."""
    root = Path(source)
    if not root.is_dir():
        return
    files, until = Files(), time.monotonic() + FILE_SECONDS
    of_coco = coco.files(root) if name == "coco" else []
    for number, path in enumerate(walk(root)):
        if number == FILES or time.monotonic() > until:
            files.more = True
            break
        shown = str(path.relative_to(root))
        kind = "hidden" if "/." in f"/{shown}" else ending(path.name)
        files.found[kind] += 1
        if path in of_coco or (kind != "hidden" and _is_read(name, path, root)):
            files.read.append(shown)
        elif kind == "hidden" or not _is_picture(name, path):
            files.unread[kind] += 1
    least = "at least " if files.more else ""
    yield f"files: {least}{files.found.total():,}: {_counted(files.found)}"
    if files.read:
        yield f"read: {_few(files.read)}"
    if files.unread:
        yield f"not read: {_counted(files.unread)}"


def _is_read(name: str, path: Path, root: Path) -> bool:
    """Whether a file says what the records are, or holds them."""
    if name == "flickr_token":
        return path.parent == root and (
            SIGNS[name](path) or (path.suffix == ".txt" and split_of_name(path.stem) is not None)
        )
    if name == "img2dataset" and path.name.endswith((*webdataset.SUFFIXES, ".parquet")):
        return True
    if name == "text_folder":
        texts = text_folder.texts_of(root) or root
        of_texts = path.suffix.lower() == ".txt" and path.is_relative_to(texts)
        lists = [*text_folder.split_lists(texts), *text_folder.split_of_images(texts)]
        return of_texts or path in lists
    if name in ("sidecar", "img2dataset"):
        words = FIELD_OF.get(path.suffix.lower()[1:], "image") != "image"
        return words and not path.name.endswith("_stats.json")
    return name not in ("coco", "huggingface") and name in SIGNS and SIGNS[name](path)


def _is_picture(name: str, path: Path) -> bool:
    """Whether a file is an image that the format may read, or is part of a saved data set."""
    return name in ("huggingface", "lance") or (
        name != "webdataset" and path.suffix.lower() in MEDIA_SUFFIXES
    )


def _splits_of(source: str, name: str, rule: str, records: Sequence[RawRecord]) -> Iterator[str]:
    """A line about the splits, and about what tells them."""
    if rule == "val-of-train":
        yield "splits: a tenth of train is val, by each image's hash, as `--split` says"
    if rule in SPLITS:
        yield f"splits: all {rule}, as `--split` says"
    elif rule == "hash" or all(record.split is None for record in records):
        why = "as `--split` says" if rule == "hash" else "the source tells none"
        yield f"splits: 80/10/10 by each image's hash, {why}"
    elif files := _split_files(source, name):
        told: dict[str, list[str]] = {}
        for file, split in files.items():
            told.setdefault(split, []).append(file)
        yield "splits: by name, " + ", ".join(f"{one} ({_few(of)})" for one, of in told.items())
    else:
        yield f"splits: by {SAID_BY.get(name, 'the source')}"


def _split_files(source: str, name: str) -> Mapping[str, str]:
    """The files or folders whose names tell a split."""
    path = Path(source)
    if name == "coco":
        found = coco.files(path)
        names = [os.path.relpath(one, path if path.is_dir() else path.parent) for one in found]
        splits = [coco.split_of(one) for one in found]
    elif name == "flickr_token":
        lists = flickr_token.split_lists(path)
        names, splits = [one.name for one in lists], [split_of_name(one.stem) for one in lists]
    elif name == "text_folder":
        told_by = text_folder.split_lists(text_folder.texts_of(path) or path)
        names, splits = [one.name for one in told_by], list(told_by.values())
    elif name in ("folder", "sidecar"):
        names = folder.split_folders(path)
        splits = [split_of_name(one) for one in names]
    elif name == "table":
        tables = table.tables(source)
        names = [os.path.relpath(one, source) for one in tables]
        splits = table.file_splits(source, tables)
    elif name == "webdataset":
        told = webdataset.tar_splits(source, webdataset.tars(source))
        names, splits = list(told), list(told.values())
    else:
        return {}
    return {one: split for one, split in zip(names, splits, strict=True) if split is not None}


def first_lines(source: str, name: str, rule: str, records: Sequence[RawRecord]) -> Iterator[str]:
    """Lines about the splits and the first records."""
    if records:
        yield from _splits_of(source, name, rule, records)
    for record in records[:SHOWN]:
        yield f"first: `{record.id}`: " + "; ".join(_said(record, rule))


def _bad(record: RawRecord, rule: str) -> Iterator[tuple[str, str]]:
    """Each record that `record` unites and that is bad by what is said of it, by id, and why. Of an
    image it is only seen whether there is one."""
    for name, outcome in check_each(record, rule, _unread):
        if isinstance(outcome, BadRecord):
            yield name, outcome.reason


def _unread(image: bytes | Path) -> Picture:
    if isinstance(image, Path) and not image.exists():
        raise Refused(f"missing file `{image}`")
    return b"", sha256_bytes(b""), (0, 0), {}


def _said(record: RawRecord, rule: str) -> Iterator[str]:
    if isinstance(record.image, BadRecord):
        yield f"bad: {record.image.reason}"
        return
    if record.split is not None:
        yield split_name(str(record.split))
    if record.class_name is not None or record.label is not None:
        label = "" if record.label is None else f" (label {record.label})"
        yield f"class `{record.class_name}`{label}"
    texts = [
        text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        for text in record.captions
    ]
    if texts:
        shown = [f'"{_short(text)}"' for text in texts[:SHOWN]] + ["..."] * (len(texts) > SHOWN)
        yield f"{len(texts)} caption{'s' * (len(texts) > 1)}: {', '.join(shown)}"
    if bad := next(_bad(record, rule), None):
        yield f"bad: {bad[1]}"


def look(source: str, name: str, options: Options, rule: str) -> Iterator[str]:
    """All that a dry run says. What reading raises is raised."""
    yield from files_of(source, name)
    records: list[RawRecord] = []

    def read() -> None:
        for record in islice(SOURCES[name](source, options), RECORDS):
            records.append(record if isinstance(record.image, BadRecord | Path) else _bare(record))

    done = _within(SECONDS, read)
    known = list(records)
    yield from first_lines(source, name, rule, known)
    yield _extent(known, done) + _told(known)
    if done and not known:
        raise DataError(f"`{source}` has no records.")
    if bad := [one for record in known for one in _bad(record, rule)]:
        key, reason = bad[0]
        yield f"bad: {len(bad):,} of these records, such as `{key}`: {reason}"
    if name == "webdataset" and options.tally.ignored:
        yield f"not read: members of these, {_counted(options.tally.ignored)}"
    yield from (f"note: {note} ({count:,})" for note, count in options.notes.items() if count)


def _extent(known: Sequence[RawRecord], done: bool) -> str:
    if not done:
        return f"records: {len(known):,} within {SECONDS:g} s, and maybe more"
    return f"records: {len(known):,}" + (", and maybe more" if len(known) == RECORDS else " in all")


def _told(known: Sequence[RawRecord]) -> str:
    """How many records are of each split, and of each class."""
    splits = Counter(split_name(str(one.split)) for one in known if one.split is not None)
    classes = len({(one.class_name, one.label) for one in known} - {(None, None)})
    of_splits = f"; by split: {_counted(splits)}" if splits else ""
    return of_splits + (f"; of {classes:,} class{'es' * (classes > 1)}" if classes else "")


def _bare(record: RawRecord) -> RawRecord:
    """Without its bytes: a thousand images may be large."""
    return replace(record, image=b"", rows=tuple(map(_bare, record.rows)))


def _within(seconds: float, work: Callable[[], None]) -> bool:
    """Whether `work` ended in time; else it goes on beside, until the process ends."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(12)) + (
        ", ..." if len(counts) > 12 else ""
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" * (len(names) > SHOWN))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
