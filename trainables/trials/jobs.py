"""What a search and its workers say to each other: jobs, results, and files that stop them."""

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
    """A result of a Ray trial, by the number of the trial that it is of."""
    return {one["number"]: one for one in result.get("members") or [result]}


def pruned_file(study: Path, number: int) -> Path:
    """Tells a worker to train on without one of several trials, which the journal has as pruned."""
    return study / "trials" / f"{number:04d}" / "pruned"


def stop_file(study: Path) -> Path:
    """While it exists, the study's trials save and stop at their next step."""
    return study / "stop"


def ask_to_stop(file: Path) -> None:
    """Let what trains save and stop; on a full disk it will see for itself."""
    with contextlib.suppress(OSError):
        file.touch()
