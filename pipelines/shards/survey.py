"""A source described before it is read.

Flows in: a source and how it will be read. Flows out: lines about its files, its splits, and its
first records. Nothing is written, and the survey ends after a number of records and of seconds,
whatever the size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Thread

from pipelines.shards.inventory import SHOWN, counted, few, files_of, split_files
from pipelines.shards.records import Picture, check_each
from pipelines.sources import cub
from pipelines.sources.base import BadRecord, Options, RawRecord, split_name
from pipelines.sources.registry import SOURCES
from pipelines.sources.texts import Refused
from trainables.data.shards import SPLITS
from trainables.errors import DataError
from trainables.files import sha256_bytes

RECORDS = 1_000
SECONDS = 5.0

# What says the split of a record, where neither the names of files nor of folders do.
SAID_BY = {
    "karpathy": "`split` of each entry",
    "table": "the split column",
    "zhou": "the lists of the JSON",
    "text_folder": f"`{cub.SPLIT}`",
    **dict.fromkeys(("webdataset", "sidecar", "img2dataset"), "`split` in each sample's `.json`"),
    "huggingface": "the data set's own splits",
}


def _splits_of(source: str, name: str, rule: str, records: Sequence[RawRecord]) -> Iterator[str]:
    """A line about the splits, and about how they are told."""
    if rule == "val-of-train":
        yield "splits: a tenth of train is val, by each image's hash, as `--split` says"
    if rule in SPLITS:
        yield f"splits: all {rule}, as `--split` says"
    elif rule == "hash" or all(record.split is None for record in records):
        why = "as `--split` says" if rule == "hash" else "the source tells none"
        yield f"splits: 80/10/10 by each image's hash, {why}"
    elif files := split_files(source, name):
        told: dict[str, list[str]] = {}
        for file, split in files.items():
            told.setdefault(split, []).append(file)
        yield "splits: by name, " + ", ".join(f"{one} ({few(of)})" for one, of in told.items())
    else:
        yield f"splits: by {SAID_BY.get(name, 'the source')}"


def first_lines(source: str, name: str, rule: str, records: Sequence[RawRecord]) -> Iterator[str]:
    """Lines about the splits and the first records."""
    if records:
        yield from _splits_of(source, name, rule, records)
    for record in records[:SHOWN]:
        yield f"first: `{record.id}`: " + "; ".join(_said(record, rule))


def _bad(record: RawRecord, rule: str) -> Iterator[tuple[str, str]]:
    """The bad records among those that `record` unites, by id, with the reasons. Of an image it is
    only checked that there is one."""
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
    """The lines of a dry run. Errors in reading are raised."""
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
        yield f"not read: members of these, {counted(options.tally.ignored)}"
    yield from (f"note: {note} ({count:,})" for note, count in options.notes.items() if count)


def _extent(known: Sequence[RawRecord], done: bool) -> str:
    if not done:
        return f"records: {len(known):,} within {SECONDS:g} s, and maybe more"
    return f"records: {len(known):,}" + (", and maybe more" if len(known) == RECORDS else " in all")


def _told(known: Sequence[RawRecord]) -> str:
    """How many records are of each split, and of each class."""
    splits = Counter(split_name(str(one.split)) for one in known if one.split is not None)
    classes = len({(one.class_name, one.label) for one in known} - {(None, None)})
    of_splits = f"; by split: {counted(splits)}" if splits else ""
    return of_splits + (f"; of {classes:,} class{'es' * (classes > 1)}" if classes else "")


def _bare(record: RawRecord) -> RawRecord:
    """A record without its image's bytes: a thousand images may be large."""
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


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
