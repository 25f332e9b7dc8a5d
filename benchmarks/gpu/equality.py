"""Trials trained together against each alone, on the card: the same losses and gradients.

In bf16 both are some way from fp32; the stack may be twice as far as single trials are.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line
from benchmarks.gpu.stacks import Counter, all_of, each, farthest, no_graphs
from benchmarks.gpu.trials import Trials, text_only, trials
from trainables.hardware import has_bf16
from trainables.training.loop import Run
from trainables.trials.stacked import StackedRuns

ADAPTERS = ("soft_prompt", "lora", "projection", "coop")
MOST = 1e-3  # fp32 sums in another order
MEMBERS = 3


def measure(scale: Scale) -> Iterator[Line]:
    clip = text_only(scale)
    for name in ADAPTERS:
        with trials(clip, 16 if scale.small else 64) as make:
            yield from equal(scale, make, name)


def equal(scale: Scale, make: Trials, name: str) -> Iterator[Line]:
    batch, steps = (8, 2) if scale.small else (32, 12)

    def runs(kind: str, precision: str) -> list[Run]:
        return make.make(name, MEMBERS, kind, batch_size=batch, precision=precision)

    bounds = {"fp32": MOST}
    if has_bf16(scale.device):
        single = runs("single", "bf16")
        gap = farthest(runs("exact", "fp32"), single, each(single), steps)
        yield Line(f"{name}: single trials in bf16 against fp32", gap)
        bounds["bf16"] = 2 * gap
    else:
        yield Line(f"{name} bf16", why="no bf16 on this device")
    for precision, most in bounds.items():
        for graphs in (False, True):
            what = f"{name}: {MEMBERS} in {precision}, graphs {'on' if graphs else 'off'}"
            if graphs and scale.small:
                yield Line(what, why="no card")
                continue
            counter, kind = Counter(), f"{precision}-{graphs}-"
            stack = StackedRuns(runs(kind, precision), counter if graphs else no_graphs)
            expected = runs(f"{kind}exact-", "fp32")
            gap = farthest(expected, stack.runs, all_of(stack), steps)
            yield Line(f"{what}, against fp32 alone", gap, most=most)
            if graphs:
                yield Line(f"{what}: steps replayed, of {steps}", counter.replayed, least=1)
