"""A recorded surface as what answers a searcher in place of training.

Flows in: a Parquet file of `record.py`, and configurations of its space. Flows out: learning curves
that were really run, noise included: a configuration's own, or those of the one most like it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from sklearn.ensemble import ExtraTreesRegressor

from search_spaces.common import Space
from trainables.config import Value
from trainables.errors import DataError

FOLDER = Path(__file__).parent / "surfaces"
Array: TypeAlias = NDArray[Any]
Curves: TypeAlias = dict[str, Array]  # by metric, such as "val/accuracy": (epochs,)


@dataclass(frozen=True)
class Surface:
    """R recorded configurations of one adapter on one data set, the published recipes first.

    Curves have a value for each of `about["epochs"]` epochs, or fewer: one where the configuration
    leaves nothing to train, as many as there were until the loss was no number (`failed` says so).

    How like two configurations are is a random forest's proximity (Breiman 2001): the share of
    trees, grown to foretell the whole val curve, in which both fall into the same leaf. So fields
    that change nothing count for nothing.
    """

    about: dict[str, Any]  # data, adapter, task, metric, baseline, provenance ...
    space: Space
    configs: list[dict[str, Value]]  # R, the searched fields, dotted
    curves: list[Curves]  # R
    seconds: list[float | None]  # R: of the CPU, for training and val; None: not taken
    failed: list[str | None]  # R: why it ended early
    starts: int  # of the configurations, the recipes of that time

    @classmethod
    def load(cls, path: Path) -> Surface:
        """The surface in a file; `DataError` where it is none."""
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        if b"about" not in metadata:
            raise DataError(f"`{path}` is no recorded surface: it does not say what it is about.")
        about = json.loads(metadata[b"about"])
        space = {name: json_to_distribution(one) for name, one in about["space"].items()}
        rows = table.to_pylist()
        names = [name for name in table.column_names if name.startswith(("val/", "test/"))]
        return cls(
            about,
            space,
            [json.loads(row["config"]) for row in rows],
            [{name: np.array(row[name], np.float64) for name in names} for row in rows],
            [row["seconds"] for row in rows],
            [row["failed"] for row in rows],
            sum(row["start"] for row in rows),
        )

    @property
    def recipes(self) -> list[dict[str, Value]]:
        """What a search tries before all else."""
        return self.configs[: self.starts]

    @property
    def baseline(self) -> dict[str, float]:
        """Zero-shot's values, under the curves' names."""
        found: dict[str, float] = self.about["baseline"]
        return found

    def answer(self, config: Mapping[str, Value]) -> Curves:
        """What was recorded of the configuration that is most like `config`, a dict of at least the
        searched fields; of equally like ones, the first."""
        return self.curves[self.nearest(config)]

    def nearest(self, config: Mapping[str, Value]) -> int:
        """The row of that configuration: its own where it was recorded."""
        own = tuple(encode(self.space, config))
        found = self._rows.get(own)
        return self._forest.nearest(np.array(own)) if found is None else found

    @cached_property
    def _rows(self) -> dict[tuple[float, ...], int]:
        encoded = [tuple(encode(self.space, config)) for config in self.configs]
        return {own: row for row, own in reversed(list(enumerate(encoded)))}

    @cached_property
    def _forest(self) -> Forest:
        return Forest(self.inputs, self.targets)

    @property
    def inputs(self) -> Array:
        """The configurations as numbers: (R, columns)."""
        return np.array([encode(self.space, config) for config in self.configs])

    @property
    def targets(self) -> Array:
        """What of the curves the likeness is about: each val metric at each epoch, as the rank
        among all R, since likelihoods have long tails: (R, metrics x epochs)."""
        names = [name for name in self.curves[0] if name.startswith("val/")]
        epochs = self.about["epochs"]
        curves = [np.stack([whole(one[name], epochs) for one in self.curves]) for name in names]
        return np.concatenate([_ranks(each) for each in curves], axis=1)


def whole(curve: Array, epochs: int) -> Array:
    """A curve to its last epoch: (epochs,). What ended early stays where it was; what is no number
    is below all."""
    last = curve[-1:] if len(curve) else np.array([np.nan])
    curve = np.concatenate([curve, last.repeat(epochs - len(curve))])
    return np.where(np.isnan(curve), -np.inf, curve)


def _ranks(values: Array) -> Array:
    """The share of rows below each value, in its column, equal ones alike: as (R, E)."""
    return np.stack([np.searchsorted(np.sort(v), v) / len(v) for v in values.T], axis=1)


def encode(space: Space, config: Mapping[str, Value]) -> list[float]:
    """A configuration as numbers: choices one-hot, what is searched by its logarithm as that."""
    numbers: list[float] = []
    for name, one in space.items():
        if isinstance(one, CategoricalDistribution):
            chosen = one.choices.index(config[name])
            numbers += [float(n == chosen) for n in range(len(one.choices))]
        else:
            assert isinstance(one, FloatDistribution | IntDistribution)
            value = float(config[name])  # type: ignore[arg-type]
            numbers.append(float(np.log(value)) if one.log else value)
    return numbers


class Forest:
    """Extremely randomised trees (Geurts et al. 2006) as arrays, so that a look-up takes 0.1 ms."""

    def __init__(self, inputs: Array, targets: Array, trees: int = 100, least: int = 3) -> None:
        """`least`: rows in a leaf."""
        grown = ExtraTreesRegressor(trees, min_samples_leaf=least, random_state=0)
        each = [one.tree_ for one in grown.fit(inputs, targets).estimators_]
        most = max(one.node_count for one in each)
        # (trees, nodes); a leaf is its own child.
        self.feature = _stacked([np.maximum(one.feature, 0) for one in each], most)
        self.threshold = _stacked([one.threshold for one in each], most)
        self.left = _stacked([_children(one.children_left) for one in each], most)
        self.right = _stacked([_children(one.children_right) for one in each], most)
        self.depth = max(one.max_depth for one in each)
        self.every = np.arange(trees)
        self.leaves = np.array([self.leaf(row) for row in inputs])  # (R, trees)

    def leaf(self, row: Array) -> Array:
        """The leaf of each tree that a row of numbers falls into: (trees,)."""
        row = row.astype(np.float32)  # as the trees were grown
        at = np.zeros(len(self.every), np.int64)
        for _ in range(self.depth):
            goes = row[self.feature[self.every, at]] <= self.threshold[self.every, at]
            at = np.where(goes, self.left[self.every, at], self.right[self.every, at])
        return at

    def nearest(self, row: Array) -> int:
        return int((self.leaves == self.leaf(row)).sum(1).argmax())


def _children(children: Array) -> Array:
    return np.where(children < 0, np.arange(len(children)), children)


def _stacked(arrays: Sequence[Array], width: int) -> Array:
    return np.stack([np.pad(one, (0, width - len(one))) for one in arrays])
