"""The verdicts on a recipe's runs: a row a published number, with pass or fail.

Flows in: a recipe and its numbers by seed, or why one is missing. Flows out: rows, as JSON, as a
table and as Markdown.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.reproduce.plan import Measured
from pipelines.reproduce.recipes import Recipe
from trainables.metrics.balance import harmonic

Row = dict[str, Any]
PASS, FAIL, NOT_RUN = "PASS", "FAIL", "not run"
COLUMNS = (
    *("recipe", "measure", "baseline", "ours", "expected", "difference", "tolerance", "verdict"),
)


def rows_of(recipe: Recipe, runs: Mapping[int, Measured], reasons: Mapping[int, str]) -> list[Row]:
    """One row for each published number; `runs` and `reasons` are by seed.

    The mean over seeds is compared, in both directions: a mean far above the published number is of
    another protocol, too. A seed that is missing leaves no mean to compare.
    """
    return [_row(recipe, measure, runs, reasons) for measure in recipe.expected]


def _row(
    recipe: Recipe, measure: str, runs: Mapping[int, Measured], reasons: Mapping[int, str]
) -> Row:
    row: Row = {
        "recipe": recipe.name,
        "adapter": recipe.adapter,
        "dataset": recipe.dataset,
        "protocol": recipe.protocol,
        "measure": measure,
        "values": {str(seed): _of(one.adapter, measure) for seed, one in runs.items()},
        "expected": recipe.expected[measure],
        "tolerance": recipe.allowed(measure),
        **{"source": recipe.source, "note": recipe.note},
        **dict.fromkeys(("mean", "std", "baseline", "difference", "reason")),
    }
    if reasons:
        return row | {"verdict": NOT_RUN, "reason": "; ".join(dict.fromkeys(reasons.values()))}
    mean = _mean([one.adapter for one in runs.values()], measure)
    values = list(row["values"].values())
    difference = mean - row["expected"]
    # In binary, 0.86 - 0.85 is more than 0.01.
    passes = abs(difference) <= row["tolerance"] + 1e-9
    return row | {
        "mean": mean,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "baseline": _mean([one.baseline for one in runs.values()], measure),
        "difference": difference,
        "verdict": PASS if passes else FAIL,
    }


def _of(parts: Mapping[str, float], measure: str) -> float:
    return harmonic(parts["base"], parts["new"]) if measure == "harmonic" else parts[measure]


def _mean(seeds: Sequence[Mapping[str, float]], measure: str) -> float:
    """The mean over seeds; the harmonic mean is that of the means, as in the published tables."""
    means = {part: statistics.fmean(one[part] for one in seeds) for part in seeds[0]}
    return _of(means, measure)


def cells(row: Row) -> tuple[str, ...]:
    """A row in words, in the order of `COLUMNS`."""

    def show(name: str, form: str) -> str:
        return "" if row[name] is None else format(row[name], form)

    spread = f" ± {row['std']:.4f}" if row["std"] is not None else ""
    return (
        *(row["recipe"], row["measure"], show("baseline", ".4f"), show("mean", ".4f") + spread),
        *(show("expected", ".4f"), show("difference", "+.4f"), show("tolerance", ".4f")),
        row["verdict"],
    )


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines for the terminal, columns aligned."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
    for row in rows:
        if row["reason"]:
            yield f"{row['recipe']}, {row['measure']}: not run: {row['reason']}"


def markdown(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """The same as a page: the table, then where each number comes from."""
    speaker = f" Language model: {about['lm']}." if "lm" in about else ""
    lines = [
        "# Published numbers, run again",
        "",
        f"Backbone: {about['backbone']}.{speaker} On test, mean ± standard deviation over seeds. "
        "The baseline needs no training: zero-shot, or the nearest training image's caption.",
        "",
        _line(COLUMNS),
        _line(["---"] * len(COLUMNS)),
        *(_line(cells(row)) for row in rows),
        "",
        *(
            f"- `{row['recipe']}`, {row['measure']}: {row['reason']}"
            for row in rows
            if row["reason"]
        ),
    ]
    seen: dict[str, Row] = {}
    for row in rows:
        seen.setdefault(row["recipe"], row)
    lines += ["", "## Sources", ""]
    lines += [f"- `{name}`: {row['source']} {row['note']}".rstrip() for name, row in seen.items()]
    return "\n".join(lines) + "\n"


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"
