"""The best points of earlier searches, as `--prior RUN...` names them.

Flows in: folders of studies and arenas, which may lie deeper. Flows out: for an adapter the best
points of each. Nothing is written there.

They are points to try, no more. A sampler could also be shown the earlier trials, each study's
values standardised. On recorded surfaces that is worse: regret on val after 16 trials' worth of
epochs was 5.8 points with all of them, 4.2 where they fade, 4.2 without.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipelines.hold import refuse_links
from pipelines.tune.study.best import standing_of
from pipelines.tune.study.journal import NAME, read_trials
from pipelines.tune.study.search import PRIOR, Search, Start
from pipelines.tune.study.study import OVER
from trainables.errors import DataError
from trainables.files import read_json

EACH = 3  # points of a study at most
MOST = 4  # of all, for one adapter
OWN = ("name", "task", "epochs", "seed", "changes", "precision")  # every search has its own


@dataclass(frozen=True)
class Earlier:
    """An earlier study."""

    folder: Path
    data: str  # the key of its features
    trials: Sequence[FrozenTrial]

    def best(self, adapter: str) -> Iterator[Start]:
        """The adapter's best trials, stopped early or not, one for each configuration."""
        ended = [
            one
            for one in self.trials
            if one.state in (TrialState.COMPLETE, TrialState.PRUNED)
            and one.user_attrs["config"]["name"] == adapter
            and OVER not in one.user_attrs
        ]
        known: list[Mapping[str, Any]] = []
        for trial in sorted(ended, key=standing_of, reverse=True):
            config = trial.user_attrs["config"]
            values = {name: value for name, value in config.items() if name not in OWN}
            if values not in known and len(known) < EACH:
                known.append(values)
                yield Start(values, PRIOR, f"trial {trial.number} of {self.folder}")


def read_priors(folders: Sequence[Path], search: Search) -> list[Earlier]:
    """The studies in `folders`, in their order, but one of each data set before a second one."""
    found = [one for folder in folders for one in _studies(folder, search)]
    seen = Counter[str]()
    turns = []
    for one in found:
        turns.append(seen[one.data])
        seen[one.data] += 1
    order = sorted(range(len(found)), key=lambda place: turns[place])
    return [found[place] for place in order]


def prior_points(earlier: Sequence[Earlier], adapter: str) -> list[Start]:
    """The best of each study, then the second best of each ..., equal ones once."""
    rounds = itertools.zip_longest(*(one.best(adapter) for one in earlier))
    points: list[Start] = []
    for point in [one for each in rounds for one in each if one]:
        if all(point.values != known.values for known in points):
            points.append(point)
    return points[:MOST]


def _studies(folder: Path, search: Search) -> Iterator[Earlier]:
    paths = [folder / "study.json"]
    if not paths[0].exists():
        paths = sorted(folder.glob("**/study.json"))
    if not paths:
        rule = "must be folders of `cliptune tune` or `cliptune arena`"
        raise DataError(f"`--prior` {rule}, got `{folder}`, in which no study was begun.")
    for path in paths:
        refuse_links(path.parent)
        about = read_json(path)
        task = about.get("task", "retrieval")
        if task != search.task:
            rule = f"must be searches for {search.task} as this one"
            raise DataError(f"`--prior` {rule}, got `{path.parent}`, which is for {task}.")
        trials = read_trials(path.with_name(NAME))
        yield Earlier(path.parent, str(about.get("features_key")), trials)
