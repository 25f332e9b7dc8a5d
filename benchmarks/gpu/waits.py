"""How often a step makes the CPU wait for the card; it never should."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line
from benchmarks.gpu.stacks import begin, no_graphs, step_alone, step_together
from benchmarks.gpu.trials import text_only, trials
from trainables.trials.stacked import StackedRuns

ADAPTERS = ("soft_prompt", "lora", "projection")
STEPS = 10


def measure(scale: Scale) -> Iterator[Line]:
    clip = text_only(scale)
    batch = 8 if scale.small else 32
    for name in ADAPTERS:
        with trials(clip, 8 * batch) as make:
            single = make.make(name, 1, "single", batch_size=batch)
            eager, replayed = (make.make(name, 3, kind, batch_size=batch) for kind in "ab")
            stacks = StackedRuns(eager, no_graphs), StackedRuns(replayed)
            ways: dict[str, Callable[[], None]] = {
                "alone": lambda: step_alone(single[0]),  # noqa: B023
                "3 together": lambda: step_together(stacks[0]),  # noqa: B023
                "3 together, graphs on": lambda: step_together(stacks[1]),  # noqa: B023
            }
            begin((*single, *eager, *replayed))
            for way, step in ways.items():
                what = f"{name} {way}: waits in {STEPS} steps"
                if scale.small:
                    step()
                    yield Line(what, why="no card")
                else:
                    yield count(what, scale, step)


def count(what: str, scale: Scale, step: Callable[[], None]) -> Line:
    for _ in range(20):
        step()
    scale.wait()
    with listening() as heard:
        for _ in range(STEPS):
            step()
    where = sorted({f"{one.filename.rpartition('/')[2]}:{one.lineno}" for one in heard})
    return Line(what, len(heard), most=0, why=", ".join(where))


@contextmanager
def listening() -> Iterator[list[warnings.WarningMessage]]:
    """What torch warns of while it looks for waits."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield heard
        finally:
            torch.cuda.set_sync_debug_mode("default")
            heard[:] = [one for one in heard if "synchroniz" in str(one.message)]
