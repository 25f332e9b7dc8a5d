"""A split through an adapter, by the metrics of its task.

Flows in: an adapter and a split. Flows out: one number a metric, and the values of single queries
whose mean it is: a resample of the images then tells how sure the number is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainables.adapters.base import Adapter
from trainables.features.split import SplitFeatures
from trainables.metrics.calibration import Calibration, calibrate
from trainables.metrics.captioning import score_captions
from trainables.metrics.classification import (
    calibrated_likelihood,
    classification_metrics,
    log_likelihood,
    per_image,
)
from trainables.metrics.retrieval import per_query, summarise
from trainables.training.predict import predict, score, speak

CALIBRATED = "calibrated_likelihood"
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """The measurements: `values` (Q,) of a metric's queries, and `images` (Q,), the image of each
    query. A metric that is not a mean has no values."""

    metrics: dict[str, float]
    values: Values
    images: dict[str, Tensor]  # by the metric's name
    calibration: Callable[[], Calibration | None] = lambda: None  # of classes, on this split

    def kept(self, metric: str) -> Values:
        """The values that a choice between checkpoints by `metric` needs, small enough to keep with
        each."""
        if metric not in self.values:
            return {}
        kept = {"value": self.values[metric].float(), "image": self.images[metric].int()}
        if CALIBRATED in self.values:
            kept[CALIBRATED] = self.values[CALIBRATED].float()
        return {name: tensor.contiguous() for name, tensor in kept.items()}


def examine(adapter: Adapter[Any], data: SplitFeatures, similarity: Tensor | None = None) -> Found:
    """The metrics of the adapter's task on a split. Where the split has other classes beside it,
    which training never sees, also `retained`, the mean accuracy over their tasks. `similarity` (N,
    C): of the images to the classes, where it is given instead of computed."""
    if data.labels is not None and data.classes is not None:
        scores = score(adapter, data, data.classes) if similarity is None else similarity
        found = _classes(adapter, data, scores, data.labels)
    elif adapter.train_config.task == "captioning":
        found = _captions(adapter, data)
    else:
        groups = data.groups[data.caption_rows]
        values = per_query(predict(adapter, data), data.groups, groups)
        images = {name: groups if name.startswith("t2i") else data.groups for name in values}
        found = Found(summarise(values), values, images)
    if data.others and adapter.open_classes:
        kept = [measure(adapter, one)["accuracy"] for one in data.others]
        found.metrics["retained"] = sum(kept) / len(kept)
    return found


def pooled(parts: Sequence[Found]) -> Found:
    """Parts of one task of classes as one, in which every image counts alike. Metrics of the first
    part alone stay, and so does its calibration: the other parts are of other models."""
    sizes = [len(one.values["accuracy"]) for one in parts]
    values = {name: torch.cat([one.values[name] for one in parts]) for name in parts[0].values}
    means = {
        name: sum(size * one.metrics[name] for size, one in zip(sizes, parts, strict=True))
        / sum(sizes)
        for name in parts[-1].metrics
    }
    images = torch.arange(sum(sizes))
    return replace(
        parts[0],
        metrics=parts[0].metrics | means,
        values=values,
        images=dict.fromkeys(values, images),
    )


def measure(adapter: Adapter[Any], data: SplitFeatures) -> dict[str, float]:
    """The metrics of `examine` without the values behind them.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("zero_shot", {"task": "classification"}), backbone, train)
    >>> sorted(measure(adapter, train))
    ['accuracy', 'calibrated_likelihood', 'class_accuracy', 'log_likelihood']
    """
    return examine(adapter, data).metrics


def _classes(adapter: Adapter[Any], data: SplitFeatures, scores: Tensor, labels: Tensor) -> Found:
    metrics = classification_metrics(scores, labels, adapter.tau)
    metrics[CALIBRATED], scale = calibrated_likelihood(scores, labels)
    values = per_image(scores, labels, adapter.tau)
    values[CALIBRATED] = log_likelihood(scores, labels, scale)
    found = Found(metrics, values, dict.fromkeys(values, data.groups))
    if not scores.isfinite().all():  # of a run that diverged in its last step
        return found
    return replace(found, calibration=partial(calibrate, scores, labels, adapter.tau))


def _captions(adapter: Adapter[Any], data: SplitFeatures) -> Found:
    """The caption metrics that need neither stems nor CLIP."""
    scores = score_captions(speak(adapter, data), data.references, meteor=False)
    return Found(scores.summary(), scores.values, dict.fromkeys(scores.values, data.groups))
