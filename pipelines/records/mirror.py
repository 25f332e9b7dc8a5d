"""A record keeper's runs, kept as a run's folder has them.

Flows in: runs as they stand, however often. Flows out: what the keeper does not have yet, told to
it from a thread of its own, and what it could not be told. What it has stands in
`records/NAME.json`: a resumed run goes on in the same runs, and a keeper that was away is told
later. The truth is in the run's folder.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.console import say
from pipelines.pages.numbers import plural
from pipelines.records.keeper import FOLDER, About, Keeper, Row, State, measured
from trainables.files import read_hashed, read_jsonl, write_hashed

FORM = "cliptune-records-1"
PAUSE = 60.0  # seconds before a keeper that failed is tried again
PATIENCE = 60.0  # seconds at the end in which nothing more is told


@dataclass(frozen=True)
class Seen:
    """A run as it stands."""

    about: About  # its key is what the mirror adds to its own
    folder: Path  # with `metrics.jsonl`
    epochs: int = 0  # that may be told: a worker may be ahead of what was heard from it
    started: float = 0.0  # seconds since 1970
    state: State = "running"
    metrics: Mapping[str, float] = field(default_factory=dict)  # what it came to
    tags: Mapping[str, str] = field(default_factory=dict)

    def rows(self, after: int) -> list[Row]:
        """Its rows of the epochs after `after`."""
        if self.epochs <= after:
            return []
        return [
            Row(int(row["epoch"]), measured(row), self.started + float(row.get("seconds", 0.0)))
            for row in read_jsonl(self.folder / "metrics.jsonl")
            if after < int(row["epoch"]) <= self.epochs
        ]


class Mirror:
    """Tells one keeper. Nothing that goes wrong after `__init__` reaches the caller: a search does
    not end because nobody writes it down."""

    def __init__(self, keeper: Keeper, folder: Path, about: About) -> None:
        """Raises `CliptuneError` where the keeper cannot be reached."""
        self.keeper, self.path = keeper, folder / FOLDER / f"{keeper.name}.json"
        keeper.open()
        found = read_hashed(self.path, FORM, kept=list) if self.path.exists() else {}
        self.key = str(found.get("key") or uuid.uuid4().hex[:12])
        same = found.get("where") == keeper.where
        # Trials that ended, by number.
        self.kept: set[int] = set(found["kept"]) if same else set()
        self._write()
        # Of what goes on, by number: the keeper's run, and the last epoch that it was told.
        root = keeper.begin(replace(about, key=self.key), None)
        self.runs: dict[int | None, tuple[str, int]] = {None: root}
        self.told = 0  # runs brought up to date, however often
        self.lacking: dict[int | None, Seen] = {}
        self.reason, self.again = "", 0.0
        self.heard: queue.SimpleQueue[Seen | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=f"log {keeper.name}", daemon=True)
        self.thread.start()

    def hear(self, seen: Seen) -> None:
        """Let the keeper have a run as it stands; at once for the caller."""
        self.heard.put(seen)

    def close(self, last: Iterable[Seen]) -> str:
        """Bring all up to date, and end. The result says where it all is, or what is missing."""
        for seen in last:
            self.hear(seen)
        self.heard.put(None)
        told = -1
        while self.thread.is_alive() and told != self.told:
            told = self.told
            self.thread.join(PATIENCE)
        name, lacks = self.keeper.name, len(self.lacking)
        if not lacks:
            look = f"   ({self.keeper.look})" if self.keeper.look else ""
            return f"{name}: {self.keeper.where}{look}"
        why = self.reason or f"it did not answer within {PATIENCE:g} s"
        return (
            f"warning: {name} lacks {plural(lacks, 'run')}, or parts of them: {why}. The same "
            "command tells it what is missing."
        )

    def _work(self) -> None:
        while True:
            seen = self.heard.get()
            if seen is not None:
                self.lacking[seen.about.number] = seen
            if seen is None or (self.heard.empty() and time.monotonic() >= self.again):
                self._catch_up()
            if seen is None:
                self._quit()
                return

    def _catch_up(self) -> None:
        """The stated retry point: whatever a keeper's library raises is said, and tried again."""
        try:
            for number, seen in list(self.lacking.items()):
                self._tell(seen)
                del self.lacking[number]
                self.told += 1
        except Exception as error:
            words = " ".join(str(error).split())[:300] or type(error).__name__
            if not self.reason:
                say(
                    f"warning: {self.keeper.name} could not be told: {words}. The work goes on; "
                    "what is missing is tried again."
                )
            self.reason, self.again = words, time.monotonic() + PAUSE

    def _tell(self, seen: Seen) -> None:
        number = seen.about.number
        if number in self.kept:
            return
        if number not in self.runs:
            about = replace(seen.about, key=f"{self.key}-{number:04d}")
            self.runs[number] = self.keeper.begin(about, self.runs[None][0])
        run, last = self.runs[number]
        if rows := seen.rows(last):
            self.keeper.log(run, rows)
            self.runs[number] = run, rows[-1].epoch
        if seen.state == "running":
            return
        self.keeper.end(run, seen.state, seen.metrics, seen.tags)
        if number is not None:
            self.kept.add(number)
            del self.runs[number]
            self._write()

    def _quit(self) -> None:
        """The same, for what a library does when it ends."""
        try:
            self.keeper.close()
        except Exception as error:
            say(f"warning: {self.keeper.name} did not end well: {' '.join(str(error).split())}")

    def _write(self) -> None:
        about = {"format": FORM, "key": self.key, "where": self.keeper.where}
        write_hashed(self.path, about | {"kept": sorted(self.kept)})
