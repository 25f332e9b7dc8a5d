"""Which epoch of a run is kept, and by which metric.

Flows in: the rows of metrics, one an epoch, and a metric of the task. Flows out: the best row.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainables.config import Task
from trainables.errors import ConfigError, unknown

Row = dict[str, float]
# What may decide, the first by default: higher is better.
METRICS: dict[Task, list[str]] = {
    "retrieval": [
        f"val/{way}_{what}" for way in ("t2i", "i2t") for what in ("r1", "r5", "r10", "mrr")
    ],
    "classification": ["val/accuracy", "val/class_accuracy", "val/log_likelihood"],
    "captioning": ["val/cider_d", "val/cider", "val/bleu4", "val/rouge_l"],
}
LIKELIHOOD = METRICS["classification"][-1]


def check_metric(name: str, task: Task) -> None:
    if name not in METRICS[task]:
        raise ConfigError(unknown("metric", name, METRICS[task]))


def best_of(rows: Sequence[Row], metric: str) -> Row | None:
    """The row with the highest `metric`. Few images have few distinct accuracies: of equal rows,
    the one with the highest likelihood; then the first.

    >>> best_of([{"val/t2i_r1": 0.2}, {"val/t2i_r1": 0.4}], "val/t2i_r1")
    {'val/t2i_r1': 0.4}
    """
    return max(rows, key=lambda row: (row[metric], row.get(LIKELIHOOD, 0.0)), default=None)
