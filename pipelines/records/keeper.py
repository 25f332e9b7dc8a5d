"""What a record keeper is told, whichever it is.

Flows in: runs, in which trials nest, their rows of metrics and how they ended. Flows out: the same,
where people look at runs.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from trainables.config import Value

State = Literal["running", "interrupted", "complete", "pruned", "failed"]
FOLDER = "records"  # in the folder of a run


@dataclass(frozen=True)
class About:
    """What is said of a run when it begins."""

    key: str  # its name for good: a keeper that knows it goes on with that run
    name: str
    number: int | None = None  # of a trial; None: the run that trials nest in
    params: Mapping[str, Value] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What was measured after an epoch."""

    epoch: int
    metrics: Mapping[str, float]
    at: float  # seconds since 1970


def measured(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, without those that are none."""
    plain = {name: one for name, one in row.items() if isinstance(one, numbers.Real)}
    found = {name: float(one) for name, one in plain.items() if not isinstance(one, bool)}
    return {name: one for name, one in found.items() if math.isfinite(one)}


class Keeper(ABC):
    """A place that keeps records of runs.

    Each call may fail as the library behind it does; who calls says so and goes on. `open` alone is
    called before any work, and says what a user can mend.
    """

    name: ClassVar[str]
    where: str  # the place in words, without passwords
    look: str  # the command that shows it; empty: a browser does

    def __init__(self, folder: Path) -> None:
        """`folder`: of the run, in which it keeps records where nothing else is set."""
        self.folder = folder / FOLDER

    @abstractmethod
    def open(self) -> None:
        """Find the place. Raises `CliptuneError`, soon, where nobody answers."""

    @abstractmethod
    def begin(self, about: About, parent: str | None) -> tuple[str, int]:
        """Begin a run, in `parent`, or go on with it: its id, and the last epoch that it has."""

    @abstractmethod
    def log(self, run: str, rows: Sequence[Row]) -> None:
        """Keep what was measured."""

    @abstractmethod
    def end(
        self, run: str, state: State, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        """Say how a run ended, and what it came to."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what was opened."""
