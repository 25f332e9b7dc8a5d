"""The protocol of the test split: one way of measuring, the same for zero-shot and every adapter.

Flows in: a split's features and the predictions of several models on it. Flows out: metrics with
their pool's size in the name, their intervals, paired differences, and the protocol in words.
"""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainables.adapters.base import Adapter
from trainables.data.batches import Predictions
from trainables.features.split import SplitFeatures
from trainables.metrics.retrieval import per_query, summarise
from trainables.statistics.bootstrap import LEVEL, Array, Bootstrap, differing
from trainables.training.predict import predict


@dataclass(frozen=True)
class Measured:
    """One model on the split."""

    values: dict[str, Tensor]  # by metric, of every query: (Q,), or (Q, K) of which it is made
    summary: dict[str, float]
    replicates: dict[str, Array]  # by metric, of every resample
    predictions: Predictions | None = None  # of captions, for the gallery
    said: list[str] = field(default_factory=list)  # by a captioner, of each image
    calibration: dict[str, Any] | None = None  # of classes: its probabilities and sets


class Sampled(typing.Protocol):
    """A protocol that measures by resamples of images."""

    bootstrap: Bootstrap

    def named(self, metric: str) -> str:
        """`metric` with its pool."""

    def image_of(self, metric: str) -> Tensor:
        """The number of each query's image: (Q,)."""


def metrics(model: Measured, protocol: Sampled) -> dict[str, dict[str, float]]:
    """`{"t2i_r1@1000": {"value", "low", "high"}, ...}`."""
    return {
        protocol.named(name): asdict(protocol.bootstrap.interval(value, model.replicates[name]))
        for name, value in model.summary.items()
    }


def versus(model: Measured, baseline: Measured, protocol: Sampled) -> dict[str, dict[str, float]]:
    """`{"t2i_r1@1000": {"difference", "low", "high", "p"}, ...}`, paired."""
    found = {}
    for name, value in model.summary.items():
        images = differing(model.values[name], baseline.values[name], protocol.image_of(name))
        both = model.replicates[name], baseline.replicates[name]
        gap = protocol.bootstrap.difference(value - baseline.summary[name], *both, images)
        found[protocol.named(name)] = asdict(gap)
    return found


def intervals(bootstrap: Bootstrap, fixed: str, beyond: str) -> str:
    """What an interval is, and the question that it answers, in two sentences: `fixed` names what
    is taken as given, `beyond` says where other questions are answered."""
    return (
        f"Intervals are 95 % bootstrap intervals over {bootstrap.images:,} images, "
        f"{len(bootstrap.counts):,} resamples, seed 0, expanded for few images: BCa, and of "
        "differences percentile. They say what other images would change where "
        f"{fixed} and these trained adapters with their seeds stay: {beyond}"
    )


def differences(baseline: str) -> str:
    """The meaning of p, in a sentence."""
    return (
        f"Differences to {baseline} are paired: the same resamples. p is the level of the interval "
        "that ends at zero, and where two rows differ on m images at least 2^(1 - m), as no paired "
        "test can have less; Holm's is that for the best of as many rows, or pairs of them, of one "
        f"metric, and only where it is below {LEVEL} a row is said to beat {baseline} or another, "
        "or be worse."
    )


def caveats(bootstrap: Bootstrap, compared: int) -> list[str]:
    """What cannot be shown with this number of images, or of resamples, where the smallest p is
    multiplied by `compared`."""
    images, resamples = bootstrap.images, len(bootstrap.counts)
    if images == 1:
        return ["1 image: all is true of it alone; its intervals have no width, and p is 1."]
    fewest = 2.0 ** (1 - images)
    least = compared * max(bootstrap.least, fewest)
    if least < LEVEL or not compared:
        return []
    needed = None if compared * fewest >= LEVEL else bootstrap.needed(LEVEL / compared)
    among = f" of {compared:,} differences" if compared > 1 else ""
    said = f"No difference can be shown: Holm's p{among} is at least {min(1.0, least):.2g} with "
    if needed is None:
        return [f"{said}{images:,} images, however many resamples."]
    return [f"{said}{resamples:,} resamples; `--bootstrap {needed}` would do."]


class Protocol:
    """Measures models on one split, a row an image, on the same resamples of its images."""

    def __init__(self, data: SplitFeatures, resamples: int) -> None:
        self.data = data
        # The image of each query.
        self.clusters = {"i2t": torch.arange(len(data.ids)), "t2i": data.caption_rows}
        self.bootstrap = Bootstrap(len(data.ids), resamples)

    def named(self, metric: str) -> str:
        """`t2i_r1` with its pool: captions search among N images, images among M captions."""
        return f"{metric}@{len(self.clusters['i2t' if metric.startswith('t2i') else 't2i'])}"

    def image_of(self, metric: str) -> Tensor:
        return self.clusters[metric[:3]]

    def of(self, adapter: Adapter[Any], batch_size: int) -> Measured:
        return self.measure(predict(adapter, self.data, batch_size))

    def measure(self, predictions: Predictions) -> Measured:
        values = per_query(predictions, self.clusters["i2t"], self.clusters["t2i"])
        replicates = {
            name: self.bootstrap.replicates(name, value, self.clusters[name[:3]])
            for name, value in values.items()
        }
        return Measured(values, summarise(values), replicates, predictions)

    def about(self, model: Measured) -> dict[str, Any]:
        """The facts that stand beside a row's metrics."""
        del model
        return {}

    def text(self, metric: str) -> list[str]:
        """The protocol in sentences, for whoever reads the numbers."""
        images, captions = len(self.data.ids), len(self.data.caption_rows)
        return [
            f"t2i: each of {captions:,} captions ranks all {images:,} images; i2t: each of "
            f"{images:,} images ranks all {captions:,} captions. The number after @ is the pool.",
            "Ranks are exact, of cosine similarity in fp32. Of several right candidates the best "
            "counts; rows with the same bytes are one image, with the captions of all.",
            "Ties are broken at random, in expectation: with `a` candidates above and `t` equal, "
            "rank = 1 + a + t/2 and R@K = (K - a)/(t + 1) within [0, 1].",
            intervals(
                self.bootstrap,
                "this pool of candidates",
                "an image comes with all its captions. Another pool, or another training run, may "
                "change more: a run of another seed can be measured `--beside` this one.",
            ),
            differences("zero-shot"),
            f"All choices were made on val, by {metric}; nothing was chosen on test. Zero-shot is "
            "the frozen backbone with the captions as they are.",
        ]
