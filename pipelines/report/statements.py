"""The numbers of a report in words that claim no more than they show.

Flows in: a `Study` and perhaps a `Result`. Flows out: the headline, the lines under it and the key
numbers, the same for the page and the Markdown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pipelines.pages import numbers
from pipelines.pages.intervals import between, chance, verdict
from pipelines.pages.numbers import Metric, first, plural
from pipelines.report.result import Result, Row
from pipelines.report.study import Study
from pipelines.runs.baselines import WORDS

RETAINED = Metric.of("accuracy")


@dataclass(frozen=True)
class Tile:
    """One key number."""

    value: str
    label: str
    note: str = ""


def metric_of(study: Study, result: Result | None) -> Metric:
    return Metric.of(result.key if result else study.metric or "t2i_r1")


def headline(study: Study, result: Result | None) -> str:
    """The one sentence that answers the user's question."""
    metric = metric_of(study, result)
    return _measured(result, metric) if result else _searched(study, metric)


def _measured(result: Result, metric: Metric) -> str:
    row, images = result.selected, plural(int(result.data["images"]), "test image")
    baseline = WORDS[result.against]
    if row is None:
        return f"Measured on {images}; no adapter was chosen on val, so none is claimed to win."
    if row.is_baseline:
        return f"{first(baseline)} stays the choice: no adapter did better on val, on {images}."
    gain = row.gains.get(result.key)
    if gain is None:
        value = metric.show(row.metrics[result.key].value)
        reached = f"{row.name} reaches {value} {metric.label} on {images}"
        return f"{reached}; {baseline} was not compared."
    where = f"{metric.label} on {images}"
    if verdict(gain, metric) == "open":
        size = f"{metric.gain(gain.value)}{metric.points} of {where}"
        size += f" (95 % interval {between(gain, metric, signed=True)})"
        others = _others(result, metric, row)
        who = "The adapter chosen on val was not" if others else "No adapter was"
        return f"{who} shown to beat {baseline}: {row.name} differs by {size}."
    low, high = sorted((abs(gain.low), abs(gain.high)))
    claim = "beats" if verdict(gain, metric) == "better" else "is worse than"
    size = f"{metric.bare(abs(gain.value))}{metric.points} of {where}"
    interval = f"{metric.bare(low)} to {metric.bare(high)}"
    return f"{row.name} {claim} {baseline} by {size} (95 % interval {interval})."


def _searched(study: Study, metric: Metric) -> str:
    best = study.best()
    if study.prefers_baseline and study.baseline is not None:
        value = f"{metric.show(study.baseline)} {metric.label}"
        return (
            f"{first(WORDS[study.against])} stays the choice on val: {value}; no adapter beat it."
        )
    if best:
        where = "on val so far" if study.unfinished else "on val"
        value = f"{metric.show(best.value)} {metric.label}"
        if study.retains and best.retained is not None:
            value += f", {RETAINED.show(best.retained)} retained on classes it never saw"
            where = f"the best balance {where}"
            return f"{best.adapter} (trial {best.number}) is {where}: {value}."
        return f"{best.adapter} (trial {best.number}) is best {where}: {value}."
    if study.trials and study.count("failed") == len(study.trials):
        return f"All {plural(len(study.trials), 'trial')} failed."
    return "No trial has finished yet."


def details(study: Study, result: Result | None) -> list[str]:
    """The sentences under the headline: the interval, how it was chosen, and every doubt."""
    metric = metric_of(study, result)
    if result is None:
        found = (
            *(_against_val(study, metric), _chosen(study), _folded(study)),
            *(retention(study, metric), _why_failed(study)),
        )
        return [line for line in found if line] + [
            "Nothing here was measured on test: that split is still sealed."
        ]
    lines = []
    row = result.selected
    if row and study.trials:
        lines.append(f"Chosen on val among {plural(len(study.trials), 'trial')}.")
    said = _chosen(study), _folded(study), retention(study, metric)
    lines += [line for line in said if line]
    others = _others(result, metric, row)
    if others:
        names = ", ".join(f"{r.name} ({metric.gain(r.gains[result.key].value)})" for r in others)
        above = f"Above {WORDS[result.against]} on test, though not the one chosen on val"
        lines.append(f"{above}: {names}.")
    opened = len(result.test_openings)
    lines.append(
        "The test split was opened once."
        if opened == 1
        else f"The test split was opened {opened} times: each look makes its numbers less strict."
    )
    return lines


def _others(result: Result, metric: Metric, chosen: Row | None) -> list[Row]:
    """Rows other than the chosen one that are better than the baseline."""
    rows = [r for r in result.rows if r is not chosen and not r.is_baseline]
    measured = [r for r in rows if result.key in r.gains]
    return [r for r in measured if verdict(r.gains[result.key], metric) == "better"]


def _chosen(study: Study) -> str:
    """How sure the choice is, where the search could measure it."""
    chosen = study.choice.get("chosen", {})
    return first(chosen["words"]) if "probability" in chosen else ""


def _folded(study: Study) -> str:
    """The meaning of val where folds were measured beside it."""
    if not (folds := study.facts.get("folds")):
        return ""
    return (
        f"What is said of val counts the shots too, in {folds} folds: each was measured by a run "
        "that had not seen it."
    )


def _against_val(study: Study, metric: Metric) -> str:
    best = study.best()
    if best is None or best.value is None or study.baseline is None:
        return ""
    gain = f"{metric.gain(best.value - study.baseline)}{metric.points}"
    baseline = first(WORDS[study.against])
    return f"{baseline} stands at {metric.show(study.baseline)} on val: a difference of {gain}."


def retention(study: Study, metric: Metric) -> str:
    """For a search with two goals: how many trials stand on the front, and what the chosen one
    retained."""
    best, kept = study.best(), study.baseline_retained
    if not study.retains or best is None:
        return ""
    if best.retained is None:
        return (
            "No trial can be asked about classes that it never saw: retention is not applicable, "
            f"and trial {best.number} was chosen by {metric.label} alone."
        )
    both = sum(t.retained is not None and t.state == "complete" for t in study.trials)
    before = "" if kept is None else f" where {WORDS[study.against]} has {RETAINED.show(kept)}"
    return (
        f"Of {plural(both, 'trial')} with both goals, {len(study.front)} "
        f"{'stands' if len(study.front) == 1 else 'stand'} on the front of {metric.label} and "
        f"retention; the one chosen, trial {best.number}, has {RETAINED.show(best.retained)} "
        f"accuracy on val of classes it never saw{before}."
    )


def _why_failed(study: Study) -> str:
    reasons = Counter(t.reason for t in study.trials if t.state == "failed" and t.reason)
    if study.best() or not reasons:
        return ""
    reason, times = reasons.most_common(1)[0]
    return f"Most frequent reason of failure ({times} times): {reason}"


def tiles(study: Study, result: Result | None) -> list[Tile]:
    """The key numbers."""
    metric = metric_of(study, result)
    made = _test_tiles(result, metric) if result else _val_tiles(study, metric)
    if study.trials:
        states = [(study.count("complete"), "complete"), (study.count("pruned"), "stopped early")]
        states += [(study.count("failed"), "failed"), (study.count("running"), "running")]
        planned = f" of {study.planned}" if (study.planned or 0) > len(study.trials) else ""
        note = ", ".join(f"{n} {word}" for n, word in states if n)
        made.append(Tile(f"{len(study.trials):,}{planned}", "trials", note))
    spent = sum(t.seconds or 0.0 for t in study.trials)
    if spent:
        made.append(Tile(numbers.duration(spent), "training time", "all trials together"))
    return made


def _test_tiles(result: Result, metric: Metric) -> list[Tile]:
    row, baseline = result.selected, result.baseline
    made = []
    for each in (row, baseline if baseline is not row else None):
        if each and result.key in each.metrics:
            value = each.metrics[result.key]
            made.append(Tile(metric.show(value.value), each.name, between(value, metric)))
    if row and result.key in row.gains:
        gain = row.gains[result.key]
        made.append(Tile(metric.gain(gain.value), "difference", chance(gain)))
    if row:
        made.append(Tile(numbers.count(row.trainable_parameters), "trainable parameters", row.name))
    return made


def _val_tiles(study: Study, metric: Metric) -> list[Tile]:
    best = study.best()
    made = []
    if best:
        made.append(Tile(metric.show(best.value), best.adapter, "val"))
    if study.baseline is not None:
        made.append(Tile(metric.show(study.baseline), WORDS[study.against], "val"))
    if best and best.trainable_parameters is not None:
        size = numbers.count(best.trainable_parameters)
        made.append(Tile(size, "trainable parameters", best.adapter))
    return made
