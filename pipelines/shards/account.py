"""A manifest's counts in, lines out that say what became of everything that was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def account(counts: dict[str, Any]) -> Iterator[str]:
    """A manifest's counts in lines."""
    left_out = sum(counts["left_out"].values())
    yield (
        f"{counts['read']:,} records read = {counts['rows']:,} rows + {counts['united']:,} united "
        f"with their picture's row + {left_out:,} left out + {counts['quarantined']:,} quarantined"
    )
    yield from (f"left out: {reason} ({n:,})" for reason, n in counts["left_out"].items())
    if ignored := counts["on_disk"]["ignored"]:
        yield "ignored: " + ", ".join(f"{kind} ({n:,})" for kind, n in ignored.items())
