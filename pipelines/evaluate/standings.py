"""The rows of a result: every contestant beside the baseline, as JSON and as a printed table.

Flows in: contestants and their measurements. Flows out: JSON-ready rows, and lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.evaluate.protocol import Measured, metrics, versus
from pipelines.evaluate.protocols import AnyProtocol
from pipelines.runs.baselines import WORDS
from pipelines.runs.contestants import Contest, Contestant
from trainables.adapters.base import Adapter
from trainables.config import to_json
from trainables.features.features import open_features
from trainables.features.few_shot import measured
from trainables.statistics.bootstrap import holm, sign
from trainables.training.measure import measure


def standings(
    contest: Contest,
    adapters: Sequence[Adapter[Any]],
    models: Sequence[Measured],
    protocol: AnyProtocol,
) -> list[dict[str, Any]]:
    """One row a contestant, the baseline first; its val metrics are measured here."""
    rows = [
        _row(one, adapter, model, models[0], protocol)
        for one, adapter, model in zip(contest.contestants, adapters, models, strict=True)
    ]
    val = open_features(contest.features, "val", adapters[0].backbone)
    rows[0]["val"] = measure(adapters[0], measured(val, contest.draw, contest.retain))
    correct([row["vs_baseline"] for row in rows[1:]])
    return rows


def correct(gaps: Sequence[dict[str, dict[str, float]]]) -> None:
    """Add `p_holm` to each p of a metric: corrected for the number of rows, or pairs, so that the
    best of them may be picked."""
    for metric in gaps[0] if gaps else ():
        own = [row[metric] for row in gaps]
        for gap, p in zip(own, holm([gap["p"] for gap in own]), strict=True):
            gap["p_holm"] = p


def _row(
    one: Contestant,
    adapter: Adapter[Any],
    model: Measured,
    baseline: Measured,
    protocol: AnyProtocol,
) -> dict[str, Any]:
    return {
        "name": one.name,
        "adapter": adapter.train_config.name,
        "trial": one.trial,
        "config": to_json(adapter.train_config),
        "trainable_parameters": sum(p.numel() for p in adapter.parameters() if p.requires_grad),
        **one.history(),
        "metrics": metrics(model, protocol),
        "vs_baseline": {} if model is baseline else versus(model, baseline, protocol),
        **protocol.about(model),
        "selected": one.selected,
    }


def table(rows: Sequence[dict[str, Any]], metric: str) -> Iterator[str]:
    """A head line, then one line a row: value, interval, paired difference to the baseline."""
    keys = list(rows[0]["metrics"])
    key = next((k for k in keys if k.startswith(metric + "@")), keys[0])
    than = WORDS[rows[0]["adapter"]]
    yield f"{key} on test, 95 % intervals, difference to {than} (* chosen on val):"
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        found, gap = row["metrics"][key], row["vs_baseline"].get(key)
        line = f"{'*' if row['selected'] else ' '} {row['name']:<{width}}  {found['value']:.4f} "
        line += f"[{found['low']:.4f}, {found['high']:.4f}]"
        if gap:
            line += f"  {gap['difference']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
            line += f"  {verdict(gap, than)}"
        elif row["selected"]:
            line += "  chosen on val: no adapter beat it"
        yield line


def retention(rows: Sequence[dict[str, Any]]) -> str:
    """A line on the classes that training never saw; "" where none were measured."""
    if "retained" not in rows[0]["val"]:
        return ""
    kept = [(row["name"], row["val"].get("retained")) for row in rows]
    words = [f"{name} {'not applicable' if v is None else f'{v:.4f}'}" for name, v in kept]
    return f"retained, accuracy on val of classes never trained on: {', '.join(words)}"


def verdict(gap: dict[str, float], than: str = "zero-shot") -> str:
    """The words that a difference's interval, and its corrected p, allow for a metric that is
    better when higher."""
    p = f"p = {gap['p']:.4f}, Holm {gap['p_holm']:.4f}"
    shown = sign(gap["low"], gap["high"], gap["p_holm"])
    said = {1: "beats", -1: "worse than", 0: "not shown to beat"}[shown]
    return f"{said} {than} ({p})"


def pairs(
    names: Sequence[str], models: Sequence[Measured], protocol: AnyProtocol
) -> list[dict[str, Any]]:
    """Every two trained rows against each other, paired: the first minus the second, with Holm's p
    of as many pairs."""
    trained = list(zip(names, models, strict=True))[1:]
    found: list[dict[str, Any]] = [
        {"a": a, "b": b, "metrics": versus(one, other, protocol)}
        for (a, one), (b, other) in itertools.combinations(trained, 2)
    ]
    correct([pair["metrics"] for pair in found])
    return found
