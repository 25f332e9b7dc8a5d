"""Jobs, results, and files that stop trials: how a search and its workers talk.

Flows in: trials to train. Flows out: results of single trials.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDS = "folds"  # in a trial's folder: the runs that are measured beside it


@dataclass(frozen=True)
class Job:
    """A trial to train, and those of its shape to train with it."""

    number: int
    values: dict[str, Any]  # its config, dotted
    reported: int  # epochs that the study knows already
    siblings: tuple[dict[str, Any], ...] = ()  # fields of further jobs

    @property
    def all(self) -> list[Job]:
        return [self, *(Job(**one) for one in self.siblings)]


def members(result: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The results in a result of a Ray trial, by the number of their trial."""
    return {one["number"]: one for one in result.get("members") or [result]}


def pruned_file(study: Path, number: int) -> Path:
    """While this file exists, a worker trains on without this one of several trials; the journal
    has it as pruned."""
    return study / "trials" / f"{number:04d}" / "pruned"


def stop_file(study: Path) -> Path:
    """While it exists, the study's trials save and stop at their next step."""
    return study / "stop"


def ask_to_stop(file: Path) -> None:
    """Let all that trains save and stop. Where the disk is full, the file cannot be written, and
    the trials find the full disk themselves."""
    with contextlib.suppress(OSError):
        file.touch()
