"""32 soft-prompt trials as one stack, against one process a trial: alone, and four on a card."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from time import monotonic
from typing import Any

import torch

from benchmarks.gpu.equality import MOST
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line
from benchmarks.gpu.stacks import all_of, begin, farthest, step_alone, step_together
from benchmarks.gpu.trials import text_only, trials
from trainables.trials.stacked import StackedRuns

SHARING = 4  # processes on a card, as Ray packs them with a quarter each
WAIT = 90.0  # seconds that the others may take to start
TARGET = 15.0


def measure(scale: Scale) -> Iterator[Line]:
    width, batch, seconds = (4, 8, 0.2) if scale.small else (32, 32, 4.0)
    yield equal(scale, width, batch)
    fused = width * together(scale, width, batch, seconds)
    yield Line(f"{width} trials as one stack", fused, "trial steps/s")
    own = single(scale, batch, seconds)
    yield Line("one trial alone in a process", own, "trial steps/s")
    yield Line(
        "the stack over trials one after the other",
        fused / own,
        "x",
        least=None if scale.small else TARGET,
    )
    sharing = 2 if scale.small else SHARING
    shared = side_by_side(scale, sharing, batch, seconds)
    yield Line(f"{sharing} processes at once on one device", shared, "trial steps/s")
    yield Line(f"the stack over {sharing} processes at once", fused / shared, "x")


def equal(scale: Scale, width: int, batch: int) -> Line:
    """A few of so many, against single trials."""
    with trials(text_only(scale), 8 * batch) as make:
        values: dict[str, Any] = {"batch_size": batch, "precision": "fp32"}
        alone = make.make("soft_prompt", 3, "alone", **values)
        stack = StackedRuns(make.make("soft_prompt", width, "together", **values))
        gap = farthest(alone, stack.runs, all_of(stack), 3)
    return Line(f"3 of {width} fused trials against single ones, fp32", gap, most=MOST)


def together(scale: Scale, width: int, batch: int, seconds: float) -> float:
    """Steps a second of a stack, each of all its trials."""
    with trials(text_only(scale), 8 * batch) as make:
        stack = StackedRuns(make.make("soft_prompt", width, batch_size=batch))
        begin(stack.runs)
        return rate(scale, lambda: step_together(stack), seconds)


def rate(scale: Scale, step: Any, seconds: float) -> float:
    """Steps a second over `seconds`, when what a step sets up is there."""
    for _ in range(2 if scale.small else 30):
        step()
    scale.wait()
    started, steps = monotonic(), 0
    while monotonic() - started < seconds:
        for _ in range(1 if scale.small else 10):
            step()
            steps += 1
        scale.wait()
    return steps / (monotonic() - started)


def single(scale: Scale, batch: int, seconds: float, ready: Any = None) -> float:
    """One trial; `ready` holds it back, warmed up, until all are."""
    clip = text_only(scale)
    with trials(clip, 8 * batch) as make:
        run = make.make("soft_prompt", 1, batch_size=batch)[0]
        begin([run])
        if ready is not None:
            step_alone(run)
            ready.wait(WAIT)
        return rate(scale, lambda: step_alone(run), seconds)


def side_by_side(scale: Scale, sharing: int, batch: int, seconds: float) -> float:
    """Steps a second of all processes together."""
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(sharing), context.Queue()
    processes = [
        context.Process(
            target=_one_of_them, args=(scale, batch, seconds, ready, found), daemon=True
        )
        for _ in range(sharing)
    ]
    for process in processes:
        process.start()
    try:
        return sum(found.get(timeout=WAIT + 10 * seconds) for _ in processes)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _one_of_them(scale: Scale, batch: int, seconds: float, ready: Any, found: Any) -> None:
    torch.set_num_threads(1)
    found.put(single(scale, batch, seconds, ready))
