"""Images that lie beside those that a source names, and that none of its records names.

Flows in: the records, as they are read. Flows out: the number of other images in the same folders.
Names are kept in a private SQLite file, as in the ledger.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.sources.base import RawRecord, stem_and_ending, visible
from trainables.media.frame_folders import IMAGE_SUFFIXES

UNNAMED = "image that no record names"


class Named:
    """The paths of images that records named so far."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # "": temporary, on disk when large
        self._db.execute(
            "create table named (folder blob, name blob, primary key (folder, name)) without rowid"
        )
        self._db.execute("begin")

    def among(self, records: Iterable[RawRecord]) -> Iterator[RawRecord]:
        """The records, unchanged; their paths are noted on the way."""
        for record in records:
            if isinstance(record.image, Path):
                row = (bytes(record.image.parent), bytes(Path(record.image.name)))
                self._db.execute("insert or ignore into named values (?, ?)", row)
            yield record

    def others(self) -> int:
        """How many images in the folders of the named ones are not named."""
        folders = self._db.execute("select distinct folder from named").fetchall()
        return sum(self._others(folder) for (folder,) in folders)

    def _others(self, folder: bytes) -> int:
        path = Path(folder.decode("utf-8", "surrogateescape"))
        if not path.is_dir():
            return 0
        found = self._db.execute("select name from named where folder = ?", (folder,))
        named = {name for (name,) in found}
        return sum(
            stem_and_ending(name)[1] in IMAGE_SUFFIXES and bytes(Path(name)) not in named
            for name in visible(path)
        )
