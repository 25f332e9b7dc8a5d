"""A run's adapters measured on val at several shares of what they learned.

Flows in: a contest (adapters chosen on val) and shares. Flows out: for each adapter a point a
share, with its metric and what it retained, and the share that is best. Test is never opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.runs.contestants import Contest, Contestant
from trainables.adapters.base import Adapter
from trainables.config import Task
from trainables.errors import ConfigError, DataError, unknown
from trainables.features.features import open_features
from trainables.features.few_shot import measured
from trainables.metrics.balance import as_share, standing
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import read_config
from trainables.training.interpolation import at, start_of
from trainables.training.measure import measure


def check_task(run: Path, task: Task) -> None:
    """Raise `ConfigError` for a captioner: without what it learned, its prefix is noise, so no
    share of it is zero-shot."""
    if task == "captioning":
        raise ConfigError(
            f"`{run}` is a run of captioning: it writes captions, and what it learned cannot be "
            "turned down, since an untrained captioner says nothing. `cliptune sweep` needs a run "
            "of retrieval or classification. To compare captioners, use `cliptune evaluate --run "
            f"{run} --beside OTHER_RUN`."
        )


@dataclass(frozen=True)
class Point:
    """An adapter on val at one share."""

    share: float
    value: float  # of the run's metric
    retained: float | None  # None: not measured, or not applicable

    def standing(self, metric: str) -> tuple[bool, float]:
        return standing(as_share(metric, self.value), self.retained)


@dataclass(frozen=True)
class Curve:
    """One adapter at every share."""

    name: str
    adapter: str
    trial: int | None
    points: list[Point]

    def best(self, metric: str) -> Point:
        """The best balance of both goals on val; of equal ones the smallest share."""
        return max(self.points, key=lambda p: (*p.standing(metric), -p.share))


class Bench:
    """The contest's data, opened once."""

    def __init__(self, contest: Contest, backbone: Backbone) -> None:
        self.contest, self.backbone = contest, backbone
        train = open_features(contest.features, "train", backbone)
        self.train = train if contest.draw is None else contest.draw.of(train, "train")
        val = open_features(contest.features, "val", backbone)
        self.val = measured(val, contest.draw, contest.retain)

    def load(self, one: Contestant) -> tuple[Adapter[Any], dict[str, Tensor]]:
        """A contestant's adapter, and the tensors that its training began with."""
        adapter = one.load(self.backbone, self.contest.task)
        return adapter, start_of(adapter.train_config, self.backbone, self.train)

    def point(self, share: float, adapter: Adapter[Any]) -> Point:
        """The point of `adapter`, which stands at `share`."""
        found = measure(adapter, self.val)
        return Point(share, found[self.contest.metric], found.get("retained"))

    def zero_shot(self) -> Point:
        return self.point(0.0, Contestant("zero_shot").load(self.backbone, self.contest.task))

    def curve(self, one: Contestant, shares: Sequence[float]) -> Curve:
        adapter, start = self.load(one)
        points = []
        for share in shares:
            with at(adapter, share, start):
                points.append(self.point(share, adapter))
        return Curve(one.name, adapter.train_config.name, one.trial, points)


def choose(contest: Contest, name: str = "") -> Contestant:
    """The contestant called `name`, or the one chosen on val; zero-shot learned nothing, so it
    cannot be turned."""
    trained = {one.name: one for one in turnable(contest)}
    if name and name not in trained:
        raise DataError(unknown("adapter of the run", name, trained))
    found = trained.get(name) or next((one for one in trained.values() if one.selected), None)
    if found is None:
        raise DataError("zero-shot was chosen on val: name another with `--adapter`.")
    return found


def turnable(contest: Contest) -> list[Contestant]:
    """The contestants that learned something."""
    return [
        one
        for one in contest.contestants
        if one.folder is not None and read_config(one.folder).name != "zero_shot"
    ]
