"""Memory of stacks by their width, and whether a process's share of the card is kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line
from benchmarks.gpu.stacks import begin, step_alone, step_together
from benchmarks.gpu.trials import text_only, trials
from trainables.models.backbone import Backbone
from trainables.trials.stacked import StackedRuns

WIDTHS = (1, 2, 4, 8, 16, 32)
MIB, SHARE = 2**20, 0.25


def measure(scale: Scale) -> Iterator[Line]:
    if scale.small:
        yield Line("memory of a stack by its width", why="no card")
        yield Line("a process stays within its share of the card", why="no card")
        return
    clip, peaks = text_only(scale), {}
    before = torch.cuda.memory_allocated()
    yield Line("the frozen towers", before / MIB, "MiB")
    for width in WIDTHS:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run_some(scale, clip, width)
        peaks[width] = torch.cuda.max_memory_allocated() - before
        yield Line(f"{width} soft prompts: allocated", peaks[width] / MIB, "MiB")
        yield Line(f"{width} soft prompts: reserved", torch.cuda.max_memory_reserved() / MIB, "MiB")
    # A width is chosen by time alone; what it takes must grow as the number of trials does.
    planned = peaks[2] + (WIDTHS[-1] - 2) * (peaks[4] - peaks[2]) / 2
    yield Line("32 of them over what 2 and 4 let expect", peaks[32] / planned, "x", most=1.25)
    yield share_kept(scale)


def run_some(scale: Scale, clip: Backbone, width: int) -> None:
    with trials(clip, 256) as make:
        runs = make.make("soft_prompt", width, batch_size=32)
        begin(runs)
        stack = StackedRuns(runs) if width > 1 else None
        for _ in range(8):
            step_alone(runs[0]) if stack is None else step_together(stack)
        scale.wait()


def share_kept(scale: Scale) -> Line:
    """What asks for more than its share is refused, and the card still has room."""
    what = "a process stays within its share of the card"
    total = torch.cuda.get_device_properties(scale.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(SHARE)
    try:
        torch.empty(int(total * (SHARE + 0.05)), dtype=torch.uint8, device=scale.device)
    except torch.OutOfMemoryError:
        return Line(what, 1, least=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return Line(what, 0, least=1)
