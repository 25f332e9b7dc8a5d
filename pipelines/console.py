"""What every command says to its user: what it wrote, and what to run next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def say(text: str) -> None:
    print(text, flush=True)


def done(wrote: Sequence[Path], then: str) -> None:
    """The last lines of a stage that worked."""
    for path in wrote:
        say(f"wrote {path}")
    say(f"next: {then}")


def nothing_to_do(path: Path, then: str) -> None:
    """The last lines of a stage whose outcome is already there."""
    say(f"{path} is up to date: nothing to do.")
    say(f"next: {then}")
