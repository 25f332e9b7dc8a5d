"""An estimate and its interval in words and figures, the same on every page.

Flows in: an `Estimate`. Flows out: a word or a short text.
"""

from __future__ import annotations

from pipelines.pages import numbers
from pipelines.pages.checked import Estimate
from pipelines.pages.numbers import Metric
from trainables.statistics.bootstrap import sign


def verdict(gain: Estimate, metric: Metric) -> str:
    """`better` or `worse` where the interval excludes 0 and Holm's p, if there is one, agrees; else
    `open`."""
    shown = sign(gain.low, gain.high, gain.p_holm)
    return {1: "better", -1: "worse", 0: "open"}[shown if metric.higher_is_better else -shown]


def chance(gain: Estimate) -> str:
    """p alone, and p corrected for the number of rows, or pairs."""
    alone = numbers.probability(gain.p)
    return alone if gain.p_holm is None else f"{alone}, Holm {numbers.probability(gain.p_holm)}"


def between(estimate: Estimate, metric: Metric, signed: bool = False) -> str:
    show = metric.gain if signed else metric.bare
    return f"{show(estimate.low)} to {show(estimate.high)}"
