"""What is searched, from which points on, and with which budget.

Flows in: adapters with their spaces, the metric, budgets and limits. Flows out: the fields that are
drawn for each adapter, the points that its trials begin with, and the value of a trial that ended.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from pipelines.tune.study.kinds import Sampler
from pipelines.tune.study.study import OVER, goals
from search_spaces.common import Space
from search_spaces.notation import contains, plain, text_of, words
from search_spaces.registry import SPACES
from trainables.adapters.registry import ADAPTERS, make_config
from trainables.config import Task, Value, flatten
from trainables.data.store import read_manifest
from trainables.features.few_shot import about_draws
from trainables.files import now

FORMAT = "cliptune-study-1"
# Origins of trials that no sampler drew.
RECIPE, PRIOR, PORTFOLIO = POINTS = "recipe", "prior", "portfolio"
UNLIKELY = -10.0  # a log-likelihood, in place of one that is no number or lower


@dataclass(frozen=True)
class Start:
    """A point that an adapter's trials begin with, and its source."""

    values: Mapping[str, Value]
    origin: str
    source: str = ""  # what of that, in words


@dataclass(frozen=True)
class Stopping:
    """When a trial is stopped early.

    `asha`: asynchronous successive halving, whose first rung is epoch `grace` and lets one of `eta`
    on; in several `brackets`, each bracket's first rung is `eta` times later. `median`: below the
    median of the others. In a population (`pbt`, `pb2`) no trial is stopped: every `interval`
    epochs some take the place of others.
    """

    kind: Literal["asha", "median", "none", "pbt", "pb2"] = "asha"
    eta: int = 3
    grace: int = 1
    brackets: int = 1
    interval: int = 1

    @property
    def population(self) -> bool:
        return self.kind in ("pbt", "pb2")


def doubt_of(metric: str, images: int) -> float:
    """The weight of a likelihood beside `metric` on so many val images: at most two standard errors
    of an accuracy, so nearly 0 with many images; 0 beside a metric that is not an accuracy."""
    return 1 / math.sqrt(images) if metric.endswith("accuracy") else 0.0


def usual_grace(task: Task, epochs: int) -> int:
    """The first rung. After one epoch, values of few shots on few val images say little of the
    values after nine."""
    return min(3, epochs) if task == "classification" else 1


@dataclass(frozen=True)
class Search:
    """What is searched, and with which budget."""

    adapters: tuple[str, ...]
    metric: str
    trials: int  # at most; 0: the other budgets say when it ends
    epochs: int  # of a trial
    seed: int
    fixed: dict[str, Value]  # dotted fields that every trial gets, beside `epochs`
    task: Task = "retrieval"
    retains: bool = False  # the second goal is `val/retained`
    epochs_total: int = 0  # of all trials together; 0: no limit
    minutes: float = 0.0  # 0: no limit
    stops: bool = False  # by itself, where more trials would not pay
    sampler: Sampler = "auto"
    stopping: Stopping = Stopping()
    limits: Mapping[str, float] = field(default_factory=dict)  # of what a trial notes, the most
    spaces: Mapping[str, Space] = field(default_factory=dict)  # else the adapters' own
    hints: Mapping[str, Sequence[Start]] = field(default_factory=dict)  # tried after the recipes
    folds: int = 0  # over the shots, measured beside val
    doubt: float = 0.0  # the weight of the calibrated likelihood beside the metric, for a sampler

    def space(self, adapter: str) -> Space:
        """The space of an adapter."""
        return self.spaces[adapter] if adapter in self.spaces else SPACES[adapter][self.task]

    def searched(self, adapter: str) -> Space:
        """The space of an adapter without the fields that are fixed for all trials."""
        return {key: one for key, one in self.space(adapter).items() if key not in self.fixed}

    @property
    def budget(self) -> str:
        """The budget in words."""
        words = [
            *([f"{self.trials} trials"] if self.trials else []),
            *([f"{self.epochs_total} epochs"] if self.epochs_total else []),
            *([f"{self.minutes:g} minutes"] if self.minutes else []),
        ]
        return " or ".join(words)

    @property
    def size(self) -> int:
        """How many trials the search may come to have, where no number was given; most are stopped
        early."""
        return self.trials or 3 * self.epochs_total // self.epochs or 64

    def starts(self, adapter: str) -> list[Start]:
        """The points that an adapter's trials begin with, whatever the budget."""
        return self._starts[adapter]

    def next_point(self, adapter: str, tried: int) -> Start | None:
        """The point that comes after `tried` of the adapter's: first the starts, then the hints;
        None: all were tried, a sampler draws."""
        points = [*self.starts(adapter), *self.hints.get(adapter, ())]
        return points[tried] if tried < len(points) else None

    @functools.cached_property
    def _starts(self) -> dict[str, list[Start]]:
        return {
            name: [
                Start({key: recipe[key] for key in self.searched(name)}, RECIPE)
                for recipe in self.recipes(name)
            ]
            for name in self.adapters
        }

    def exceeds(self, result: Mapping[str, Any]) -> bool:
        """Whether a trial went over a limit."""
        return any(result.get(name, 0) > most for name, most in self.limits.items())

    def standing(self, trial: FrozenTrial) -> list[float]:
        """The value of a trial that ended, for each goal, however long it ran; a whole point less
        where it went over a limit. Empty for one that failed."""
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            return []
        best, kept = goals(trial)
        best -= OVER in trial.user_attrs
        # Where retention is not applicable, it counts as if none of it was kept.
        return [best, kept or 0.0] if self.retains else [best]

    def heard(self, trial: FrozenTrial) -> list[float]:
        """The value that a sampler is told: `standing`, and where the metric is an accuracy,
        `doubt` times the likelihood of the answers. Few images have few distinct accuracies: among
        trials that are equally good on 40 images, the likelier one says where to look."""
        found = self.standing(trial)
        if found and self.doubt:
            # Below all likelihoods where it is no number, which `max` leaves out in this order.
            found[0] += self.doubt * max(UNLIKELY, trial.user_attrs.get("calibrated", UNLIKELY))
        return found

    def recipes(self, adapter: str) -> list[dict[str, Value]]:
        """The adapter's published settings for the task that lie in what is searched. Settings that
        do not differ in any searched field count once."""
        searched = sorted(self.space(adapter).keys() - self.fixed.keys())
        every = [one for one in self._published(adapter) if not self.outside(adapter, one)]
        distinct = {tuple(one[key] for key in searched): one for one in every[::-1]}
        return list(distinct.values())[::-1]

    def left_out(self, adapter: str) -> list[str]:
        """A sentence for each published setting that is none of `recipes`, and why."""
        why = [self.outside(adapter, one) for one in self._published(adapter)]
        lines = (f"the recipe of `{adapter}` is left out: its {one}." for one in why if one)
        return list(dict.fromkeys(lines))

    def _published(self, adapter: str) -> list[dict[str, Value]]:
        variants = ADAPTERS[adapter].VARIANTS.get(self.task, ())
        every = ({"task": self.task, **more} for more in ({}, *variants))
        return [flatten(make_config(adapter, values)) for values in every]

    def outside(self, adapter: str, config: Mapping[str, Value]) -> str:
        """Which value of a configuration no trial of this search can have, in words; empty: there
        is none."""
        space, usual = self.space(adapter), self._published(adapter)[0]
        for name, value in config.items():
            if name in self.fixed or name == "epochs":  # every trial's are the search's
                continue
            if name in space and not contains(space[name], value):
                return f"`{name}` {plain(value)} is outside {text_of(space[name])}"
            if name not in space and value != usual[name]:
                return f"`{name}` {plain(value)} is not searched"
        return ""


def about_study(
    search: Search,
    rungs: Sequence[int],
    features: Path,
    draw: Path | None,
    retain: Sequence[Path] = (),
    workers_per_trial: int = 1,
) -> dict[str, Any]:
    """The contents of `study.json`: with it the folder can be reported and exported by itself."""
    return {
        "format": FORMAT,
        "created": now(),
        "features": str(features),
        "features_key": read_manifest(features)["key"],
        "task": search.task,
        "metric": search.metric,
        "adapters": list(search.adapters),
        "epochs": search.epochs,
        "stopping": asdict(search.stopping),
        "rungs": list(rungs),
        "population": asdict(search.stopping) if search.stopping.population else None,
        "seed": search.seed,
        "fixed": search.fixed,
        "spaces": {
            f"{adapter}/{name}": words(distribution)
            for adapter in search.adapters
            for name, distribution in search.searched(adapter).items()
        },
        "hints": {name: [asdict(one) for one in each] for name, each in search.hints.items()},
        **({"folds": search.folds} if search.folds else {}),
        "workers_per_trial": workers_per_trial,
        **about_draws(draw, retain),
        "trials": search.trials or None,
        "budget": search.budget,
        "sampler": search.sampler,
        "limits": dict(search.limits),
    }
