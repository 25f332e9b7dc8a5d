"""What the searchers were found to be worth: numbers with intervals, as JSON and as tables.

Flows in: what each seed brought on each cell. Flows out: `searchers.json`, and the part of
`RESULTS.md` about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainables.files import read_json

FORMAT = "cliptune-searchers-1"
FILE, PLOT = "searchers.json", "searchers.svg"
HOW = "python -m benchmarks.searchers"
RESAMPLES = 1000
NEAR = 1.0  # points on test
ROWS = (8, 16, 48, 64)  # trials' worth that the table shows
NOW, METRIC, ALONE = "cliptune now", "cliptune now, highest on val", "cliptune now, no portfolio"
EACH = "cliptune now, each adapter with the whole budget"


def interval(values: Any, of: Any = np.median) -> list[float]:
    """`of` all of (C, S), and its 95 % bootstrap interval: cells are drawn, and of each, seeds."""
    values, chance = np.asarray(values, float), np.random.default_rng(0)
    cells, seeds = values.shape
    drawn = chance.integers(cells, size=(RESAMPLES, cells, 1))
    own = chance.integers(seeds, size=(RESAMPLES, cells, seeds))
    spread = of(values[drawn, own].reshape(RESAMPLES, -1), axis=1)
    found = [of(values), *np.quantile(spread, (0.025, 0.975))]
    return [round(float(one), 4) for one in found]


def summary(found: Sequence[Any], about: dict[str, Any]) -> dict[str, Any]:
    """What `searchers.json` says of all `Found`."""
    seeds = sorted({one.seed for one in found})
    by = {(one.cell, one.seed): one for one in found}
    alone = sorted({one.cell for one in found if one.regrets})
    several = sorted({one.cell for one in found if one.reached})
    result: dict[str, Any] = {"format": FORMAT, **about, "seeds": len(seeds)}
    result |= {"cells": alone, "data": several, "regret": {}, "together": {}}
    for label, marks in (by[alone[0], seeds[0]].regrets if alone else {}).items():
        rows = result["regret"][label] = []
        for mark in marks:
            both = np.array([[by[c, s].regrets[label][mark] for s in seeds] for c in alone])
            row: dict[str, Any] = {"trials": mark}
            for place, split in enumerate(("val", "test")):
                row[split] = interval(both[..., place])
                row[f"{split}_mean"] = interval(both[..., place], np.mean)
            rows.append(row)
    for label, budgets in (by[several[0], seeds[0]].reached if several else {}).items():
        result["together"][label] = [
            together(by, several, seeds, label, budget) for budget in budgets
        ]
    return result


def together(
    by: Any, several: Sequence[str], seeds: Sequence[int], label: str, budget: int
) -> dict[str, Any]:
    """How far several adapters, searched beside each other, end from the best one alone: the one
    that is best on the mean of all seeds, with the same seed; and from whichever is best there."""
    gaps, strict, best = [], [], {}
    for name in several:
        alone = {
            adapter: np.array([by[name, s].alone[adapter][budget] for s in seeds])
            for adapter in by[name, seeds[0]].alone
        }
        best[name] = max(alone, key=lambda adapter: alone[adapter].mean())
        own = np.array([by[name, s].reached[label][budget] for s in seeds])
        gaps.append(alone[best[name]] - own)
        strict.append(np.max(list(alone.values()), axis=0) - own)
    near, hard = np.array(gaps) <= NEAR + 1e-9, np.array(strict) <= NEAR + 1e-9
    return {
        "trials": budget,
        "near": interval(near, np.mean),
        "near_any": interval(hard, np.mean),
        "gap": interval(gaps),
        "gap_mean": interval(gaps, np.mean),
        "near_data": dict(zip(several, near.mean(1).tolist(), strict=True)),
        "best": best,
    }


def section(folder: Path) -> list[str]:
    """What `RESULTS.md` says about searchers."""
    path = folder / FILE
    head = ["## Searchers", ""]
    if not path.is_file():
        return [*head, f"`{HOW}` was not run yet."]
    return [*head, *render(read_json(path))]


def render(stored: dict[str, Any]) -> list[str]:
    """The text and both tables, in Markdown."""
    lines = [
        f"Written by `{HOW} --seeds {stored['seeds']}` in {stored['minutes']:.0f} minutes:",
        "searches on recorded learning curves, one trial at a time. Budgets are in trials' worth,",
        "the epochs of a trial that is not stopped early. Regret is what the best recorded",
        "configuration has above the answer, in points of the metric: the median over all cells",
        "and seeds, its 95 % bootstrap interval (cells are drawn, and seeds of each), the mean.",
        "`cliptune now` chooses its answer by likelihood among trials that the metric cannot tell",
        "from the best; the row `highest on val` is the same search, which answers as all others",
        "do. Its portfolio is made of the other data sets; `no portfolio` goes without.",
        "",
        f"![regret against epochs spent]({PLOT})",
        "",
    ]
    if stored["regret"]:
        lines += [
            f"One adapter: {len(stored['cells'])} cells, a data set and an adapter each.",
            "",
            "| searcher | trials' worth | regret on val | 95 % | mean | on test | 95 % | mean |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for label, rows in stored["regret"].items():
            lines += [_regret(label, row) for row in rows if row["trials"] in ROWS]
        lines += ["", *targets(stored["regret"]), ""]
    if stored["together"]:
        lines += [
            f"Several adapters beside each other: {len(stored['data'])} data sets. In which share",
            f"of cells the answer is within {NEAR:g} point on test of the best adapter, searched",
            "alone by `cliptune now` with the whole budget and the same seed: of the adapter that",
            "is best on the mean of all seeds, and of whichever is best with that seed. The last",
            "row spends the whole budget on each adapter and chooses among all trials: what it",
            "misses, val does not tell.",
            "",
            "| searcher | trials' worth | within 1 point | 95 % | of any | gap, mean | 95 % |",
            "|---|---|---|---|---|---|---|",
        ]
        for label, rows in stored["together"].items():
            lines += [_together(label, row) for row in rows]
        lines += ["", *(_best(stored)), ""]
    return lines[:-1]


def _regret(label: str, row: dict[str, Any]) -> str:
    cells = [label, str(row["trials"])]
    for split in ("val", "test"):
        middle, low, high = row[split]
        cells += [f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{row[f'{split}_mean'][0]:.2f}"]
    return f"| {' | '.join(cells)} |"


def _together(label: str, row: dict[str, Any]) -> str:
    near, low, high = row["near"]
    gap, least, most = row["gap_mean"]
    return (
        f"| {label} | {row['trials']} | {near:.0%} | {low:.0%} to {high:.0%} "
        f"| {row['near_any'][0]:.0%} | {gap:.2f} | {least:.2f} to {most:.2f} |"
    )


def targets(regret: dict[str, Any]) -> list[str]:
    """Whether 16 trials' worth, and 8, are as good as 64 at random and 48 of what was. On val the
    highest there is meant, which the choice is not about."""

    def at(label: str, trials: int) -> dict[str, Any]:
        found: dict[str, Any] = next(row for row in regret[label] if row["trials"] == trials)
        return found

    lines = []
    for trials in (16, 8):
        for other, most in (("random", 64), ("cliptune as it was", 48)):
            verdicts = []
            for split, label in (("val", METRIC), ("test", NOW)):
                for name, key in (("median", split), ("mean", f"{split}_mean")):
                    reached = at(label, trials)[key][0] <= at(other, most)[key][0]
                    verdicts.append(f"{name} on {split} {'' if reached else 'not '}reached")
            words = f"{trials} trials' worth at most the regret of {other} after {most}"
            lines.append(f"- {words}: {', '.join(verdicts)}.")
    return lines


def _best(stored: dict[str, Any]) -> list[str]:
    rows = stored["together"].get(NOW, [])
    return [
        f"- {row['trials']} trials' worth, by data set (best alone): "
        + ", ".join(
            f"{name} {share:.0%} ({row['best'][name]})" for name, share in row["near_data"].items()
        )
        + "."
        for row in rows
    ]
