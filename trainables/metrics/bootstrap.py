"""Bootstrap: values per query flow in, 95 % intervals and paired comparisons flow out.

Images are resampled, not queries: the captions of one image are not independent, so they come and
go together. The pool of candidates stays fixed, as drawing it with replacement would plant
duplicates that beat the positive. Two models under the same `Bootstrap` see the same resamples,
which is what makes their difference a paired one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]
CHUNK = 64  # resamples at a time
LEVEL = 0.05  # a difference is shown where its p is below


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference, its 95 % percentile interval, and how often its sign flips.

    `p` is twice the smaller share of resamples on one side of zero (those at zero count on both
    sides): small when the sign is nearly always the same, 1 for two equal models.
    """

    difference: float
    low: float
    high: float
    p: float


class Bootstrap:
    """Seeded resamples of `clusters` images, drawn once and used for every metric and model.

    Percentile bootstrap over clusters (Efron & Tibshirani 1993).
    """

    def __init__(self, clusters: int, resamples: int = 2000, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        # How often each image is in each resample; 255 is out of reach of a uniform draw.
        self.counts = np.empty((resamples, clusters), np.uint8)  # (R, G)
        for row in self.counts:
            row[:] = np.bincount(random.integers(clusters, size=clusters), minlength=clusters)

    def mean(self, values: Tensor, clusters: Tensor) -> Array:
        """The mean of `values` (Q,) in each resample, (R,); `clusters` (Q,) number the images."""
        groups = clusters.numpy()
        sums = np.bincount(groups, values.numpy(), self.counts.shape[1]).astype(np.float64)
        sizes = np.bincount(groups, minlength=self.counts.shape[1]).astype(np.float64)
        return self.means(sums[:, None], sizes[:, None])[:, 0]

    def means(self, sums: Array, sizes: Array) -> Array:
        """K means in each resample, (R, K), of which an image adds `sums` (G, K) to what is added
        up and `sizes` (G, K) to their number; NaN where no image of a resample adds any."""
        with np.errstate(invalid="ignore"):
            return np.concatenate([(n @ sums) / (n @ sizes) for n in self._chunks()])

    def class_mean(self, values: Tensor, clusters: Tensor, labels: Tensor) -> Array:
        """The mean over classes of the mean of `values` (Q,) in each, in each resample, (R,); of
        the classes that a resample has. How many images a class has is chance too."""
        total, present = np.zeros(len(self.counts)), np.zeros(len(self.counts))
        for label in labels.unique():
            own = labels == label
            drawn = self.counts[:, clusters[own].numpy()].astype(np.float64)  # (R, n)
            sizes = drawn.sum(1)
            total += np.divide(drawn @ values[own].numpy(), sizes, where=sizes > 0, out=0 * sizes)
            present += sizes > 0
        found: Array = total / present
        return found

    def sums(self, values: Tensor, clusters: Tensor) -> Array:
        """The sums of `values` (Q, K) in each resample, (R, K): for a metric of sums over images,
        such as corpus BLEU, which is no mean of values per image."""
        grouped = np.zeros((self.counts.shape[1], values.shape[1]))  # (G, K)
        np.add.at(grouped, clusters.numpy(), values.numpy())
        return np.concatenate([counts @ grouped for counts in self._chunks()])

    def median(self, values: Tensor, clusters: Tensor) -> Array:
        """The median of `values` (Q,) in each resample, (R,)."""
        order = values.argsort().numpy()
        ranked, groups = values.numpy()[order], clusters.numpy()[order]
        parts = []
        for counts in self._chunks():
            until = counts[:, groups].cumsum(1)  # (chunk, Q) queries up to and with each
            total = until[:, -1:]
            middle = [(until <= place).sum(1) for place in ((total - 1) // 2, total // 2)]
            parts.append((ranked[middle[0]] + ranked[middle[1]]) / 2)
        return np.concatenate(parts)

    def _chunks(self) -> Iterator[Array]:
        for start in range(0, len(self.counts), CHUNK):
            yield self.counts[start : start + CHUNK].astype(np.float64)

    def replicates(self, name: str, values: Tensor, clusters: Tensor) -> Array:
        """Metric `name` in each resample: `*_medr` is a median, all others are means."""
        statistic = self.median if name.endswith("_medr") else self.mean
        return statistic(values, clusters)


def interval(value: float, replicates: Array) -> Interval:
    low, high = np.quantile(replicates, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def difference(value: float, ours: Array, theirs: Array) -> Difference:
    """`value` = our metric minus theirs; the replicates are of the same resamples."""
    gaps = ours - theirs
    low, high = np.quantile(gaps, (0.025, 0.975))
    flips = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    p = min(1.0, 2 * (flips + 1) / (len(gaps) + 1))  # + 1: never claim a chance of exactly zero
    return Difference(value, float(low), float(high), p)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p for a claim of whichever is small: at a level, in so many of families of true null
    hypotheses is any of these below it (Holm, Scand. J. Statist. 6, 1979). `holm([0.01, 0.04])` is
    `[0.02, 0.04]`."""
    found, largest = [0.0] * len(ps), 0.0
    for place, number in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[number]))
        found[number] = largest
    return found
