"""Records that cannot be used: written down with id and reason, counted, and limited in number.

Flows in: ids and reasons. Flows out: `quarantine.jsonl`, the summary for the manifest, and an error
as soon as more than the allowed share of a source is bad.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from types import TracebackType

from trainables.errors import DataError

_EARLY = 1_000  # records after which the share is trusted enough to stop


class Quarantine:
    """The bad records of one run. A record is bad once, whatever its number of faults."""

    def __init__(self, path: Path, max_fraction: float) -> None:
        self.path = path
        self.max_fraction = max_fraction
        self.reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}  # a record of each
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, reason: str) -> None:
        self.write(name, reason)
        kind = _kind(reason)
        self.reasons[kind] += 1
        self._first.setdefault(kind, f"`{name}`: {reason}")

    def write(self, name: str, reason: str) -> None:
        """Note a record in the file without counting it as bad: a rule left it out."""
        # ASCII escapes: an id may hold bytes that are not UTF-8.
        self._file.write(json.dumps({"id": name, "reason": reason}) + "\n")

    def check(self, seen: int, *, finished: bool = False) -> None:
        """Stop the stage when more than the allowed share of the `seen` records is bad."""
        bad = self.reasons.total()
        if (finished or seen >= _EARLY) and bad > self.max_fraction * seen:
            self._file.flush()
            most = self.reasons.most_common(5)
            summary = ", ".join(f"{kind} ({n:,})" for kind, n in most)
            first = self._first[most[0][0]]
            raise DataError(
                f"{bad:,} of {seen:,} records ({100 * bad / seen:.3g} %) are bad, above "
                f"`--max-bad-fraction` {self.max_fraction:g}: {summary}, such as {first}. "
                f"Each is in `{self.path}`."
            )


def _kind(reason: str) -> str:
    """The reason without the words that differ from record to record."""
    reason = re.sub(r" \(.*\)", "", reason, flags=re.DOTALL)
    reason = re.sub(r"`[^`]*`|'[^']*'", "...", reason)
    return re.sub(r"(?<![-\d])\d+(?:[.,]\d+)*", "N", reason)
