"""What every command says to its user: the files it wrote, and the command to run next.

Flows in: text and paths. Flows out: lines on stdout and stderr.
"""

from __future__ import annotations

import os
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def say(text: str) -> None:
    """Write a line to stdout. If its reader has gone (`| head`), nothing more is said, and the work
    goes on."""
    print(safe(text), file=Patient(sys.stdout), flush=True)


class Patient:
    """A stream whose reader may go: from then on, what is written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._patience():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._patience():
            self.stream.flush()

    @contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


def word(value: object) -> str:
    """A path or a name, quoted so that the line can be pasted into a shell."""
    return shlex.quote(str(value))


def complain(text: str) -> None:
    """Write a line to stderr."""
    print(safe(text), file=sys.stderr)


def safe(text: str) -> str:
    """A text with control characters shown as their codes. Names of files and classes come from
    strangers, and could move a terminal's cursor, colour it or turn its text around."""
    return "".join(_shown(one) for one in text) if not text.isprintable() else text


def _shown(one: str) -> str:
    joins = one in "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # which scripts and emoji need
    if one in "\n\t" or joins or unicodedata.category(one) not in ("Cc", "Cf", "Cs"):
        return one
    return f"\\x{ord(one):02x}" if ord(one) < 256 else f"\\u{ord(one):04x}"


def done(wrote: Sequence[Path], then: str) -> None:
    """The last lines of a stage that worked."""
    for path in wrote:
        say(f"wrote {path}")
    say(f"next: {then}")


def nothing_to_do(path: Path, then: str) -> None:
    """The last lines of a stage whose outcome is already there."""
    say(f"{path} is up to date: nothing to do.")
    say(f"next: {then}")
