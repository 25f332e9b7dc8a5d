"""Ask and tell between Ray Tune and the study.

Differs from Ray's `OptunaSearch` where that one loses facts: trials that ASHA stops are told PRUNED
with all their intermediate values, failures FAIL with their reason, and the value told is the best.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pipelines.search.study import Search, frozen_trial, write_best
from search_spaces.registry import SPACES
from trainables.config import Value


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Value:
    """One value, by Optuna's public calls."""
    if isinstance(distribution, FloatDistribution):
        low, high = distribution.low, distribution.high
        return trial.suggest_float(name, low, high, step=distribution.step, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        low_int, high_int = distribution.low, distribution.high
        return trial.suggest_int(
            name, low_int, high_int, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


class StudySearcher(Searcher):
    """Ask and tell between Ray Tune and the study.

    The sampler is TPE, multivariate, seeded by (seed, trial number): a suggestion depends on the
    study's history and on nothing in memory, so a resumed search samples as if never stopped.
    """

    def __init__(self, study: optuna.Study, search: Search, folder: Path) -> None:
        super().__init__(metric=search.metric, mode="max")
        self.study, self.search, self.folder = study, search, folder
        self.stopping = False
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.unfinished = [trial.number for trial in running]
        self.live: dict[str, optuna.Trial] = {}  # Ray's trial id to Optuna's trial

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles searchers to restore them; ours is restored from the journal

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its journal, not from Ray's state.")

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self.stopping:
            return Searcher.FINISHED
        trial = self._resumed(self.unfinished.pop(0)) if self.unfinished else self._ask()
        if trial is None:  # but one that is running may lose its worker and come back
            return None if self.live else Searcher.FINISHED
        if "config" not in trial.user_attrs:
            self._sample(trial)
        self.live[trial_id] = trial
        reported = frozen_trial(self.study, trial.number).intermediate_values
        return {
            "number": trial.number,
            "values": trial.user_attrs["config"],
            "reported": max(reported, default=0),
        }

    def _ask(self) -> optuna.Trial | None:
        trials = self.study.get_trials(deepcopy=False)
        asked = sum(t.state != TrialState.WAITING for t in trials)
        if asked >= self.search.trials:
            return None
        self.study.sampler = self._sampler(asked)
        return self.study.ask()

    def _resumed(self, number: int) -> optuna.Trial:
        """A running trial, and the sampler that it was asked of: values may be left to draw."""
        self.study.sampler = self._sampler(number)
        return optuna.Trial(self.study, frozen_trial(self.study, number)._trial_id)

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        with warnings.catch_warnings():  # `group`, needed where adapters differ, is experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=self.search.seed * 1_000_003 + number,
                n_startup_trials=max(4, self.search.trials // 4),
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _sample(self, trial: optuna.Trial) -> None:
        """Draw what is not drawn yet: a driver may have been killed between two values."""
        adapters = self.search.adapters
        adapter = adapters[0]
        if len(adapters) > 1:
            adapter = trial.suggest_categorical("adapter", adapters)
        values: dict[str, Value] = {"name": adapter, "epochs": self.search.epochs}
        values |= {"seed": self.search.seed} | self.search.fixed
        for key, distribution in SPACES[adapter].items():
            if key not in self.search.fixed:
                values[key] = suggest(trial, f"{adapter}/{key}", distribution)
        trial.set_user_attr("config", values)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self.live and "epoch" in result:
            trial, epoch = self.live[trial_id], int(result["epoch"])
            if epoch not in frozen_trial(self.study, trial.number).intermediate_values:
                trial.report(result[self.search.metric], epoch)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error or trial_id not in self.live or not result:
            return  # `Losses` decides, it knows the reason
        state = result.get("state")
        if state == "interrupted":
            del self.live[trial_id]  # RUNNING in the journal: a resumed search goes on with it
        elif state == "failed":
            self.fail(trial_id, result["reason"])
        else:
            self.on_trial_result(trial_id, result)
            trial = self.live.pop(trial_id)
            self._note(trial, result)
            done = TrialState.COMPLETE if state == "finished" else TrialState.PRUNED
            value = result["best"] if state == "finished" else None  # PRUNED takes none
            self.study.tell(trial, value, state=done)
            write_best(self.study, self.search, self.folder)

    def _note(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        notes = {
            "best": result["best"],
            "epochs": result["epoch"],
            "best_epoch": result["best_epoch"],
            "seconds": result["seconds"],
            "trainable_parameters": result["trainable_parameters"],
            "metrics": {k: v for k, v in result.items() if k.startswith("val/")},
        }
        for name, value in notes.items():
            trial.set_user_attr(name, value)

    def hand_out_again(self, trial_id: str) -> None:
        """Give a trial that lost its worker to the next one that is free."""
        trial = self.live.pop(trial_id, None)
        if trial is not None:
            self.unfinished.append(trial.number)

    def fail(self, trial_id: str, reason: str) -> None:
        trial = self.live.pop(trial_id, None)
        if trial is not None:
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=TrialState.FAIL)
