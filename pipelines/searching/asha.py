"""ASHA on epochs, with a memory: what other drivers and lost workers reported still counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler

from pipelines.searching.study import DONE, Search, frozen_trial
from trainables.crew import Job, members

ETA, GRACE = 3, 1  # of the trials at a rung, the best third goes on; the first rung is epoch 1


class StudyASHA(ASHAScheduler):
    """Ray's ASHA (Li et al. 2020, arXiv:1810.05934), its rungs filled from the study.

    A trial stands once in each rung, under its number, with what it reached there, however often it
    was restarted. Of trials that train together each is judged alone: those that are to stop are
    named in the result, for the searcher.
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
                self._recall(trial)

    def _recall(self, trial: FrozenTrial) -> None:
        for epoch, value in sorted(trial.intermediate_values.items()):
            self._judge(trial.number, epoch, value)

    def _judge(self, number: int, epoch: int, value: float) -> bool:
        """Whether the trial may go on."""
        verdict = self._brackets[0].on_result(SimpleNamespace(trial_id=number), epoch, value)
        return bool(verdict == self.CONTINUE)

    def on_trial_add(self, tune_controller: Any, trial: RayTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        for job in Job(**trial.config).all:
            self._recall(frozen_trial(self.study, job.number))

    def on_trial_result(self, _: Any, __: RayTrial, result: dict[str, Any]) -> str:
        own = members(result)
        for number, one in own.items():
            one["pruned"] = not self._reached(number, one) and one["state"] == "running"
        stopped = all(one["state"] != "running" or one["pruned"] for one in own.values())
        return str(self.STOP if stopped else self.CONTINUE)

    def on_trial_complete(self, _: Any, trial: RayTrial, result: dict[str, Any]) -> None:
        for number, one in members(result).items():
            self._reached(number, one)
        self._forget(trial)

    def on_trial_remove(self, _: Any, trial: RayTrial) -> None:
        self._forget(trial)

    def on_trial_error(self, controller: Any, trial: RayTrial) -> None:
        """Those of its trials that had not ended may come back, or else failed."""
        del controller
        self._forget(trial)
        for job in Job(**trial.config).all:
            if not frozen_trial(self.study, job.number).state.is_finished():
                for _, recorded in self._brackets[0]._rungs:
                    recorded.pop(job.number, None)

    def _reached(self, number: int, result: dict[str, Any]) -> bool:
        return "epoch" not in result or self._judge(number, result["epoch"], result[self._metric])

    def _forget(self, trial: RayTrial) -> None:
        self._trial_info.pop(trial.trial_id, None)


def rungs(epochs: int) -> list[int]:
    """The epochs at which ASHA decides."""
    marks, mark = [], GRACE
    while mark < epochs:
        marks.append(mark)
        mark *= ETA
    return [*marks, epochs]
