"""Two ways to the same numbers, interleaved in one process: how much less CPU does ours take?

Flows in: a `Row`, which builds a `Case` of two variants. Flows out: a `Result`: the median of the
rounds' ratios with its interval, and the largest difference of what the variants computed. Unequal
or unsteady variants fail, whatever their ratio.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]  # outputs and gradients, by name
Variant = Callable[[], Outputs]  # starts anew at each call, so that all its outputs are equal
Clock = Callable[[], float]  # CPU seconds
Say = Callable[[str], None]

TOLERANCE = 1e-5  # fp32 sums in another order
SPREAD = 0.15  # largest IQR / median of the ratios
STRETCH = 0.25  # seconds: what is timed as one is repeated until it takes as long
RESAMPLES = 2000


@dataclass(frozen=True)
class Case:
    """The variants, with everything built that is not to be timed."""

    baseline: Variant
    ours: Variant
    clock: Clock = time.process_time


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str  # family/row, as `--rows` takes it
    what: str
    target: float  # how many times less CPU
    make: Callable[[], Case]
    tolerance: float = TOLERANCE
    once: bool = False  # minutes long, in processes of their own: one round, none to warm up


@dataclass(frozen=True)
class Limit:
    """A number of seconds that may not be passed."""

    name: str
    what: str
    allowed: float
    measure: Callable[[], float]


@dataclass(frozen=True)
class Result:
    """What a row measured. Seconds are CPU seconds of one call, medians over the rounds."""

    ratio: float  # median over the rounds of baseline / ours
    low: float  # 95 % bootstrap interval of that median
    high: float
    spread: float  # IQR / median of the ratios
    error: float  # as in `difference`, the worst of all rounds
    baseline_seconds: float
    our_seconds: float
    rounds: int

    def verdict(self, row: Row) -> str:
        if not self.error <= row.tolerance:
            return "FAILED: unequal"
        if self.spread > SPREAD:
            return f"FAILED: spread of {self.spread:.0%}"
        return "reached" if self.ratio >= row.target else "not reached"


def difference(ours: Outputs, expected: Outputs) -> tuple[float, str]:
    """The largest over all tensors of max |a - b| / max |b|, and whose it is; infinite where they
    do not fit."""
    if ours.keys() != expected.keys():
        return math.inf, "what there is"
    return max((_difference(ours[name], expected[name]), name) for name in expected)


def _difference(ours: Tensor, expected: Tensor) -> float:
    if ours.shape != expected.shape or not (ours.isfinite() & expected.isfinite()).all():
        return math.inf
    gap = float((ours.double() - expected.double()).abs().max())
    size = float(expected.double().abs().max())
    return gap / size if size else math.inf if gap else 0.0


def measure(row: Row, rounds: int, say: Say) -> Result:
    """Run a row: both variants once to warm up, then `rounds` times one after the other."""
    case = row.make()
    variants = (case.ours, case.baseline)
    repeats, rounds = [1, 1], 1 if row.once else rounds
    times: list[list[float]] = [[], []]
    error = 0.0
    for number in range(int(row.once), rounds + 1):  # round 0 warms up
        outputs: list[Outputs] = []
        for which, variant in enumerate(variants):
            started = case.clock()
            for _ in range(repeats[which] - 1):
                variant()
            outputs.append(variant())
            seconds = (case.clock() - started) / repeats[which]
            if number:
                times[which].append(seconds)
            else:
                repeats[which] = max(1, math.ceil(STRETCH / max(seconds, 1e-6)))
        gap, where = difference(*outputs)
        error = max(error, gap)
        if number:
            ratio = times[1][-1] / times[0][-1]
            say(f"{row.name}: round {number} of {rounds}, {ratio:.2f}x, {gap:.1e} in {where}")
    return _summary(times[0], times[1], error)


def _summary(ours: list[float], baseline: list[float], error: float) -> Result:
    before, after = (torch.tensor(t, dtype=torch.float64) for t in (baseline, ours))
    ratios = before / after  # (rounds,)
    low, ratio, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    interval = bootstrap_median(ratios)
    return Result(
        ratio=float(ratio),
        low=interval[0],
        high=interval[1],
        spread=float((high - low) / ratio),
        error=error,
        baseline_seconds=float(before.quantile(0.5)),
        our_seconds=float(after.quantile(0.5)),
        rounds=len(ratios),
    )


def bootstrap_median(values: Tensor) -> tuple[float, float]:
    """The 95 % percentile interval of the median of `values` (n,) float64."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    medians = values[draws].quantile(0.5, dim=1)  # (RESAMPLES,)
    return float(medians.quantile(0.025)), float(medians.quantile(0.975))
