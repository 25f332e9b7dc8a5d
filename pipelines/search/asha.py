"""ASHA on epochs, with a memory: what other drivers and lost workers reported still counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler

from pipelines.search.study import DONE, Search, frozen_trial

ETA, GRACE = 3, 1  # of the trials at a rung, the best third goes on; the first rung is epoch 1


class StudyASHA(ASHAScheduler):
    """Ray's ASHA (Li et al. 2020, arXiv:1810.05934), its rungs filled from the study.

    A trial stands once in each rung, with what it reached there, however often it was restarted.
    """

    def __init__(self, study: optuna.Study, search: Search) -> None:
        super().__init__(
            time_attr="epoch",
            metric=search.metric,
            mode="max",
            max_t=search.epochs,
            grace_period=min(GRACE, search.epochs),
            reduction_factor=ETA,
        )
        self.study = study
        for trial in study.get_trials(deepcopy=False, states=DONE):
            if trial.state != TrialState.FAIL:
                self._recall(trial, f"past-{trial.number}")

    def _recall(self, trial: FrozenTrial, trial_id: str) -> None:
        for epoch, value in sorted(trial.intermediate_values.items()):
            self._brackets[0].on_result(SimpleNamespace(trial_id=trial_id), epoch, value)

    def on_trial_add(self, tune_controller: Any, trial: RayTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        self._recall(frozen_trial(self.study, trial.config["number"]), trial.trial_id)

    def on_trial_error(self, tune_controller: Any, trial: RayTrial) -> None:
        """It may come back under another id; if it does not, it failed."""
        super().on_trial_error(tune_controller, trial)
        for _, recorded in self._brackets[0]._rungs:
            recorded.pop(trial.trial_id, None)


def rungs(epochs: int) -> list[int]:
    """The epochs at which ASHA decides."""
    marks, mark = [], GRACE
    while mark < epochs:
        marks.append(mark)
        mark *= ETA
    return [*marks, epochs]
