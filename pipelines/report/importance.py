"""Which hyperparameters mattered, and whether that is more than chance.

Flows in: the trials of one adapter. Flows out: each field's share of the importance and the share
that chance alone exceeds once in twenty.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import create_trial

from pipelines.report.study import Trial

FEWEST = 8  # trials; the best quarter of fewer is a single one
SHUFFLES = 100


@dataclass(frozen=True)
class Importance:
    """A field's share of the importance, and what it would be worth by chance (95th percentile)."""

    field: str
    share: float
    chance: float

    @property
    def stands_out(self) -> bool:
        return self.share > self.chance


def ranked(trials: list[Trial]) -> list[Trial]:
    """The trials that ended with a value, worst first. Equal ones stand in an order that is drawn:
    a search draws later trials elsewhere, and by their numbers that would look like a cause."""
    ended = [t for t in trials if t.value is not None]
    lots = np.random.default_rng(0).permutation(len(ended)).tolist()
    order = sorted(zip(ended, lots, strict=True), key=lambda pair: (pair[0].value, pair[1]))
    return [trial for trial, _ in order]


def importances(trials: list[Trial]) -> list[Importance]:
    """PED-ANOVA (Watanabe et al., IJCAI 2023) of the best quarter, most important first.

    The method asks in which fields the best trials differ from all. With tens of trials the answer
    is mostly noise, so the same question is asked of shuffled ranks: only what chance seldom
    reaches means anything. Empty when the trials are too few or nothing was varied.
    """
    order = ranked(trials)
    if len(order) < FEWEST or not any(_varied(order)):
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    random = np.random.default_rng(0)
    found = _evaluate(order, np.arange(len(order)))
    by_chance = [_evaluate(order, random.permutation(len(order))) for _ in range(SHUFFLES)]
    total = sum(found.values()) or 1.0
    made = []
    for field in _varied(order):
        chance = float(np.quantile([each.get(field, 0.0) for each in by_chance], 0.95))
        # Chance may find more than all that is there, but a share is 1 at most.
        made.append(Importance(field, found.get(field, 0.0) / total, min(chance / total, 1.0)))
    return sorted(made, key=lambda i: (-i.share, i.field))


def _varied(trials: list[Trial]) -> list[str]:
    fields = sorted({field for trial in trials for field in trial.params})
    return [f for f in fields if len({str(t.params.get(f)) for t in trials}) > 1]


def _evaluate(trials: list[Trial], values: np.ndarray) -> dict[str, float]:
    """The raw importances when trial i is worth `values[i]`."""
    storage = optuna.storages.InMemoryStorage()
    storage.create_new_study([StudyDirection.MAXIMIZE], "report")
    study = optuna.Study("report", storage)
    for trial, value in zip(trials, values, strict=True):
        study.add_trial(
            create_trial(params=dict(trial.params), distributions=dict(trial.spaces), value=value)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = PedAnovaImportanceEvaluator(target_quantile=0.25).evaluate(study)
    return {field: value for field, value in raw.items() if math.isfinite(value)}
