"""The machinery of the `shards` stage.

Flows in: raw records. Flows out: shards, and the account of what was read. Images are read and
decoded in threads (the decoders release the GIL) and written in the source's order. At most 128 MiB
of files wait between the two ends.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from pipelines.shards.fingerprint import files_of
from pipelines.shards.ledger import Ledger
from pipelines.shards.quarantine import Quarantine
from pipelines.shards.records import OF_WORDS, Checked, check_each
from pipelines.shards.united import Row, united
from pipelines.shards.writer import ShardWriter
from pipelines.sources.base import BadRecord, Options, RawRecord
from trainables.data.shards import SPLITS
from trainables.errors import DataError

_WINDOW = 2**27  # bytes of image files in flight
LEAK = "same image in another split"
Outcomes: TypeAlias = list[tuple[str, Checked | BadRecord]]


def checked(records: Iterator[RawRecord], split_rule: str) -> Iterator[Outcomes]:
    """Each record's outcome, in order, while threads work on those that follow. A record that
    unites several rows of the source has the outcomes of each."""
    pending: deque[tuple[Future[Outcomes], int]] = deque()
    workers = os.cpu_count() or 1
    held = 0
    with ThreadPoolExecutor(workers) as pool:
        for record in records:
            size = _size(record.image)
            held += size
            pending.append((pool.submit(check_each, record, split_rule), size))
            while pending and (held > _WINDOW or len(pending) > 4 * workers):
                first, size = pending.popleft()
                held -= size
                yield first.result()
        for first, _ in pending:
            yield first.result()


def _size(image: bytes | Path | BadRecord) -> int:
    if isinstance(image, Path):
        return sum(path.stat().st_size for path in files_of(image) if path.is_file())
    return len(image) if isinstance(image, bytes) else 0


class Sharding:
    """The state of one run: what it wrote, what it refused, what it noted."""

    def __init__(
        self, writer: ShardWriter, quarantine: Quarantine, options: Options, drop_leaks: bool
    ) -> None:
        self.writer, self.quarantine, self.drop_leaks = writer, quarantine, drop_leaks
        self.notes, self.tally = options.notes, options.tally
        self.ledger = Ledger()
        self.seen = self.dropped = 0  # records
        self.stale = False  # whether rows on disk are not as they should be
        self.relabel: dict[int, int] = {}  # how the labels of classes without one end

    def take(self, name: str, outcome: Checked | BadRecord) -> None:
        self.seen += 1
        if isinstance(outcome, Checked):
            fault = self.ledger.fault(outcome.row)
            if fault is None:
                self._accept(outcome)
                return
            outcome = BadRecord(fault)
        self.quarantine.add(name, outcome.reason)
        self.quarantine.check(self.seen)

    def _accept(self, record: Checked) -> None:
        row = record.row
        if self.ledger.knows(row):
            self.notes.update({*record.notes} & OF_WORDS)
            # A row on disk has what its own group says: only then can others be weighed against it.
            own = row["group"] is not None and row["group"] == self.ledger.group(row)
            if not (own and self.writer.unite(row)):
                self.ledger.note(row)
                self.stale = True
            return
        if twin := self.ledger.twin(row):
            self.stale = True
            if not self.drop_leaks:
                raise DataError(
                    f"the same image is in two splits: `{twin.id}` ({twin.split}) and "
                    f"`{row['id']}` ({row['split']}). `--on-leak drop` keeps it in test "
                    "before val before train."
                )
        self.notes.update(record.notes)
        self.ledger.add(row, self.writer.add(row))

    def _amend(self, row: Row) -> Row | None:
        """A written row with all captions of its picture, or None where the picture's row in
        another split is kept."""
        if twin := self.ledger.twin(row, better=True):
            self.dropped += self.ledger.records(row)
            self.quarantine.write(row["id"], f"same image as `{twin.id}` ({twin.split})")
            return None
        row = united(row | {"group": self.ledger.group(row)}, self.ledger.later(row))
        return row | {"label": self.relabel.get(row["label"], row["label"])}

    def finish(self) -> dict[str, Any]:
        """Complete the shards; their entries for the manifest."""
        self.quarantine.check(self.seen, finished=True)
        self.relabel = self.ledger.settle()
        stale = self.ledger.stale(every=bool(self.relabel)) if self.stale or self.relabel else ()
        shards = self.writer.close(self._amend, stale)
        self.notes["images_of_several_classes"] = self.writer.several
        self.notes["captions_said_twice"] = self.writer.twice
        splits: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            if found := [shard for shard in shards if shard["split"] == split]:
                images = sum(shard["rows"] for shard in found)
                captions = sum(shard["captions"] for shard in found)
                splits[split] = {"images": images, "captions": captions}
        return {
            "splits": splits,
            "shards": shards,
            "classes": dict(sorted(self.ledger.classes.items(), key=lambda one: one[1])),
            "counts": self._counts(sum(shard["rows"] for shard in shards)),
            "quarantined": dict(self.quarantine.reasons.most_common()),
            "notes": {note: count for note, count in sorted(self.notes.items()) if count},
        }

    def _counts(self, rows: int) -> dict[str, Any]:
        """The account of all records, read = rows + united + left out + quarantined; and of the
        images on disk, how many were read and how many are in no record."""
        bad = self.quarantine.reasons.total()
        left_out = self.tally.left_out + Counter({LEAK: self.dropped})
        return {
            "read": self.seen + self.tally.left_out.total(),
            "rows": rows,
            "united": self.seen - rows - bad - self.dropped,
            "left_out": dict(left_out.most_common()),
            "quarantined": bad,
            "on_disk": {
                "read": dict((+self.tally.read).most_common()),
                "ignored": dict((+self.tally.ignored).most_common()),
            },
        }
