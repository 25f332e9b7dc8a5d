"""The machinery of the `shards` stage: raw records in, shards and what to say of them out.

Images are read and decoded in threads (the decoders release the GIL) and written in the source's
order. At most 128 MiB of files wait between the two ends.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.sharding.fingerprint import files_of
from pipelines.sharding.ledger import Ledger
from pipelines.sharding.quarantine import Quarantine
from pipelines.sharding.records import Checked, check
from pipelines.sharding.writer import ShardWriter
from pipelines.sources.base import BadRecord, RawRecord
from trainables.errors import DataError
from trainables.shards import SPLITS

_WINDOW = 2**27  # bytes of image files in flight


def checked(
    records: Iterator[RawRecord], split_rule: str
) -> Iterator[tuple[RawRecord, Checked | BadRecord]]:
    """Each record with its outcome, in order, while threads work on those that follow."""
    pending: deque[tuple[RawRecord, Future[Checked | BadRecord], int]] = deque()
    workers = os.cpu_count() or 1
    held = 0
    with ThreadPoolExecutor(workers) as pool:
        for record in records:
            size = _size(record.image)
            held += size
            pending.append((record, pool.submit(check, record, split_rule), size))
            while pending and (held > _WINDOW or len(pending) > 4 * workers):
                first, outcome, size = pending.popleft()
                held -= size
                yield first, outcome.result()
        for first, outcome, _ in pending:
            yield first, outcome.result()


def _size(image: bytes | Path | BadRecord) -> int:
    if isinstance(image, Path):
        return sum(path.stat().st_size for path in files_of(image) if path.is_file())
    return len(image) if isinstance(image, bytes) else 0


class Sharding:
    """The state of one run: what it wrote, what it refused, what it noted."""

    def __init__(
        self, writer: ShardWriter, quarantine: Quarantine, notes: Counter[str], drop_leaks: bool
    ) -> None:
        self.writer, self.quarantine, self.notes = writer, quarantine, notes
        self.drop_leaks = drop_leaks
        self.ledger = Ledger()
        self.seen = self.leaks = 0

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
        twin = self.ledger.add(row)
        if twin and twin.split != row["split"]:
            self.leaks += 1
            if not self.drop_leaks:
                raise DataError(
                    f"the same image is in two splits: `{twin.id}` ({twin.split}) and "
                    f"`{row['id']}` ({row['split']}). `--on-leak drop` keeps it in test "
                    "before val before train."
                )
        self.notes.update(record.notes)
        self.notes["repeated_image"] += twin is not None
        self.writer.add(row)

    def _leaks(self, name: str) -> bool:
        """Whether a written row gives way to its copy in another split."""
        if twin := self.ledger.yields_to(name):
            self.notes["dropped_leaks"] += 1
            self.quarantine.write(name, f"same image as `{twin.id}` ({twin.split})")
        return twin is not None

    def finish(self) -> dict[str, Any]:
        """Complete the shards; what the manifest says of them."""
        self.quarantine.check(self.seen, finished=True)
        shards = self.writer.close(self._leaks if self.leaks else None)
        splits: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            if found := [shard for shard in shards if shard["split"] == split]:
                images = sum(shard["rows"] for shard in found)
                captions = sum(shard["captions"] for shard in found)
                splits[split] = {"images": images, "captions": captions}
        return {
            "splits": splits,
            "shards": shards,
            "classes": self.ledger.classes,
            "quarantined": dict(self.quarantine.reasons.most_common()),
            "notes": {note: count for note, count in sorted(self.notes.items()) if count},
        }
