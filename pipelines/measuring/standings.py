"""The rows of a result: every contestant beside zero-shot, as JSON and as a printed table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.measuring.accuracy import ClassProtocol
from pipelines.measuring.contestants import Contest, Contestant
from pipelines.measuring.protocol import Measured, Protocol
from trainables.adapters.base import Adapter
from trainables.config import to_json
from trainables.draws import measured
from trainables.features import open_features
from trainables.loop import measure


def standings(
    contest: Contest,
    adapters: Sequence[Adapter[Any]],
    models: Sequence[Measured],
    protocol: Protocol | ClassProtocol,
) -> list[dict[str, Any]]:
    """One row a contestant, zero-shot first; its val metrics are measured here."""
    rows = [
        _row(one, adapter, model, models[0], protocol)
        for one, adapter, model in zip(contest.contestants, adapters, models, strict=True)
    ]
    val = open_features(contest.features, "val", adapters[0].backbone)
    rows[0]["val"] = measure(adapters[0], measured(val, contest.draw, contest.retain))
    return rows


def _row(
    one: Contestant,
    adapter: Adapter[Any],
    model: Measured,
    baseline: Measured,
    protocol: Protocol | ClassProtocol,
) -> dict[str, Any]:
    per_class = protocol.per_class(model) if isinstance(protocol, ClassProtocol) else None
    return {
        "name": one.name,
        "adapter": adapter.train_config.name,
        "trial": one.trial,
        "config": to_json(adapter.train_config),
        "trainable_parameters": sum(p.numel() for p in adapter.parameters() if p.requires_grad),
        **one.history(),
        "metrics": protocol.metrics(model),
        "vs_zero_shot": {} if model is baseline else protocol.versus(model, baseline),
        **({"per_class": per_class} if per_class else {}),
        "selected": one.selected,
    }


def table(rows: Sequence[dict[str, Any]], metric: str) -> Iterator[str]:
    """A head line, then one line a row: value, interval, and the paired difference to zero-shot."""
    keys = list(rows[0]["metrics"])
    key = next((k for k in keys if k.startswith(metric + "@")), keys[0])
    yield f"{key} on test, 95 % intervals, difference to zero-shot (* chosen on val):"
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        found, gap = row["metrics"][key], row["vs_zero_shot"].get(key)
        line = f"{'*' if row['selected'] else ' '} {row['name']:<{width}}  {found['value']:.4f} "
        line += f"[{found['low']:.4f}, {found['high']:.4f}]"
        if gap:
            line += f"  {gap['difference']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
            line += f"  {verdict(gap)}"
        yield line


def retention(rows: Sequence[dict[str, Any]]) -> str:
    """A line on the classes that training never saw; "" where none were measured."""
    if "retained" not in rows[0]["val"]:
        return ""
    kept = [(row["name"], row["val"].get("retained")) for row in rows]
    words = [f"{name} {'not applicable' if v is None else f'{v:.4f}'}" for name, v in kept]
    return f"retained, accuracy on val of classes never trained on: {', '.join(words)}"


def verdict(gap: dict[str, float]) -> str:
    """What a difference's interval allows to say, of a metric that is better when higher."""
    if gap["low"] > 0:
        return f"beats zero-shot (p = {gap['p']:.4f})"
    if gap["high"] < 0:
        return f"worse than zero-shot (p = {gap['p']:.4f})"
    return "not shown to beat zero-shot"
