"""Trained rows against each other, in words that claim no more than their intervals show.

Flows in: a `Result` with paired differences, and the metric of the study. Flows out: a sentence for
each pair of rows.
"""

from __future__ import annotations

from pipelines.pages.intervals import between, chance, verdict
from pipelines.pages.numbers import Metric
from pipelines.report.result import Pair, Result


def sentences(result: Result, metric: Metric) -> list[str]:
    """By the study's metric, in the order of the file."""
    return [_sentence(pair, metric) for pair in result.pairs if metric.key in pair.gaps]


def _sentence(pair: Pair, metric: Metric) -> str:
    gap = pair.gaps[metric.key]
    word = verdict(gap, metric)
    if word == "open":
        size = f"{metric.gain(gap.value)}{metric.points} of {metric.label}"
        interval = f"95 % interval {between(gap, metric, signed=True)}, {chance(gap)}"
        return (
            f"No difference between {pair.first} and {pair.second} is shown: {size} ({interval})."
        )
    names = (pair.first, pair.second) if word == "better" else (pair.second, pair.first)
    size = f"{metric.bare(abs(gap.value))}{metric.points} of {metric.label}"
    low, high = sorted((abs(gap.low), abs(gap.high)))
    interval = f"95 % interval {metric.bare(low)} to {metric.bare(high)}, {chance(gap)}"
    return f"{names[0]} is better than {names[1]} by {size} ({interval})."
