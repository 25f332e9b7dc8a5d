"""How many runs of one shape are best trained together: measured once a search and adapter.

Flows in: a function that makes runs, and a study's folder. Flows out: `fused.json` there. An
adapter's entry is written before anything is tried, and always holds the best that is known. So a
try that fails, or that ends the process, is not repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.data.made_once import alone
from trainables.faults import context_is_dead
from trainables.files import read_json, write_json
from trainables.training.loop import Run
from trainables.trials.memory import give_back
from trainables.trials.stacked import StackedRuns

SETUP = 2  # steps before one is timed: one as it is, one that is recorded
Note = Callable[[int, str], None]  # the best width that is known, and why it is no other


class Widths:
    """The findings of a search's workers, by adapter: `width`, the fastest, and `fits`, the most
    that fitted into memory where more did not; each with its reason."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the study."""
        self.path = folder / "fused.json"

    def read(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = read_json(self.path) if self.path.exists() else {}
        return found

    def of(self, adapter: str, asked: int = 0) -> int:
        """How many trials to train together: as many as was `asked`, or as found fastest."""
        own = self.read().get(adapter, {})
        width = asked or int(own.get("width", 1))
        return min(width, int(own.get("fits", width)))

    def ask(self, adapter: str) -> bool:
        """Whether the caller is the first to ask for `width`, and so the one to measure it."""
        with self._entry(adapter) as own:
            first = "width" not in own
            if first:
                own |= {"width": 1, "why": "it was never measured."}
        return first

    def note(self, adapter: str, width: int, why: str) -> None:
        with self._entry(adapter) as own:
            own |= {"width": width, "why": why}

    def note_full(self, adapter: str, fits: int, why: str) -> None:
        """Note that more trials than `fits` were too many for the memory."""
        with self._entry(adapter) as own:
            if fits < own.get("fits", math.inf):
                own |= {"fits": fits, "full": why}

    @contextmanager
    def _entry(self, adapter: str) -> Iterator[dict[str, Any]]:
        """An adapter's entry, to be changed under a lock: several workers may at once."""
        with alone(self.path.with_suffix(".lock")):
            widths = self.read()
            own = widths.get(adapter, {})
            yield own
            write_json(self.path, widths | {adapter: own})


def measure_width(
    make: Callable[[int], Sequence[Run]],
    most: int,
    note: Note,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Measure how many runs of one shape train fastest together, up to `most`, and note it.

    `make(n)` gives n fresh runs. N is doubled until a run's share of a step's time is 5 % above the
    best; of two widths that differ by less, the smaller is taken. On a CPU that point comes at once
    where the runs' own arithmetic dominates (a text tower), and late where the number of calls does
    (heads on frozen features). An error ends the measuring with the best so far, and nothing else;
    but an error after which the device serves this process no more ends the process.
    """
    best, least, width = 1, math.inf, 1
    why = f"{most} is the most that was allowed."
    while width <= most:
        note(best, f"the process ended while {width} were measured.")
        try:
            seconds = _step_seconds(make(width), clock) / width
        except Exception as error:
            why = f"{width} failed with {type(error).__name__}: {' '.join(str(error).split())}"
            if context_is_dead(error):
                note(best, why)
                raise
            break
        if seconds > 1.05 * least:
            why = f"{width} were slower."
            break
        if seconds < 0.95 * least:
            best, least = width, seconds
        width *= 2
    note(best, why)
    give_back()  # an error had held on to the runs that it came from


def _step_seconds(runs: Sequence[Run], clock: Callable[[], float], rounds: int = 3) -> float:
    """The time of the first step of all, the least of a few tries, once everything is set up."""
    stack = StackedRuns(runs) if len(runs) > 1 else None
    for run in runs:
        run.begin_epoch()
    times = []
    for _ in range(SETUP + rounds):
        started = clock()
        numbers = runs[0]._train_step() if stack is None else stack._step()
        numbers.row()  # the device is done
        times.append(clock() - started)
    return min(times[SETUP:])
