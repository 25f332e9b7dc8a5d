"""The protocol of the test split for classes, beside that for captions in `protocol.py`.

Flows in: a split's labelled features and the scores of several models on it. Flows out: accuracies
with the number of classes in their name, their intervals, paired differences, and the protocol in
words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pipelines.evaluate import calibration
from pipelines.evaluate.protocol import Measured, differences, intervals
from trainables.adapters.base import Adapter
from trainables.features.split import SplitFeatures
from trainables.metrics.calibration import Calibration
from trainables.metrics.classification import by_class, per_image
from trainables.statistics.bootstrap import Bootstrap
from trainables.training.predict import score


class ClassProtocol:
    """Measures models on labelled images, on the same resamples of them."""

    def __init__(
        self,
        data: SplitFeatures,
        resamples: int,
        calibrations: Sequence[Calibration | None] = (),
        same_classes: bool = True,
    ) -> None:
        """`calibrations`: each adapter's calibration on val, of these classes or of others."""
        assert data.labels is not None
        assert data.classes is not None
        self.data, self.labels, self.classes = data, data.labels, data.classes
        # Of an image under two labels there are two rows.
        distinct, self.clusters = data.groups.unique(return_inverse=True)
        self.bootstrap = Bootstrap(len(distinct), resamples)
        self.images = calibration.Images(self.labels, self.clusters, self.bootstrap)
        self.calibrations, self.same_classes = calibrations, same_classes

    def named(self, metric: str) -> str:
        """`accuracy` with its pool, the number of classes."""
        return f"{metric}@{len(self.classes)}"

    def image_of(self, metric: str) -> Tensor:
        del metric
        return self.clusters

    def of(self, adapter: Adapter[Any], batch_size: int) -> Measured:
        scores = score(adapter, self.data, self.classes, batch_size)
        if not scores.isfinite().all():
            raise calibration.diverged(adapter)
        found = self.measure(scores, adapter.tau)
        if adapter.calibration is None:
            return found
        about = calibration.about(scores, self.images, adapter.calibration, self.same_classes)
        return replace(found, calibration=about)

    def measure(self, scores: Tensor, scale: float) -> Measured:
        """The metrics of similarities (N, C), which `scale` turns into logits."""
        values = per_image(scores, self.labels, scale)
        replicates = {
            name: self.bootstrap.mean(value, self.clusters) for name, value in values.items()
        }
        replicates["class_accuracy"] = self.bootstrap.class_mean(
            values["accuracy"], self.clusters, self.labels
        )
        return Measured(values, {n: float(v.mean()) for n, v in values.items()}, replicates)

    def per_class(self, model: Measured) -> dict[str, float]:
        """The accuracy of each class that has images."""
        found = by_class(model.values["accuracy"], self.labels, len(self.classes)).tolist()
        named = zip(self.classes.names, found, strict=True)
        return {name: value for name, value in named if not math.isnan(value)}

    def about(self, model: Measured) -> dict[str, Any]:
        found = {"calibration": model.calibration} if model.calibration else {}
        return {"per_class": self.per_class(model)} | found

    def text(self, metric: str) -> list[str]:
        """The protocol in sentences."""
        return [
            f"Each of {len(self.labels):,} images is put into one of {len(self.classes)} classes, "
            "the number after @; ties are broken at random, in expectation.",
            "accuracy counts images, class_accuracy is the mean over classes, log_likelihood is "
            "that of the true class.",
            intervals(
                self.bootstrap,
                "these classes",
                "other classes and other draws and seeds to train on would change more: see "
                "`cliptune arena`, which measures both.",
            ),
            differences("zero-shot"),
            *calibration.text(self.calibrations, self.same_classes),
            f"All choices were made on val, by {metric}; nothing was chosen on test. Zero-shot is "
            f"the frozen backbone with `{self.classes.template}`.",
        ]
