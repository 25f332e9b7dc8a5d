"""The search's memory: an Optuna study in a journal beside the run, and the Ray searcher over it.

The journal is the one truth. Ray Tune's own experiment state is never read back: a restarted search
asks the journal which trials are finished, goes on with those that were running under their own
numbers, and then samples new ones. Nothing is run twice, lost, or doubled.

Differs from Ray's `OptunaSearch` where that one loses facts: trials that ASHA stops are told PRUNED
with all their intermediate values, failures FAIL with their reason, and the value told is the best.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from search_spaces.registry import SPACES
from trainables.adapters.registry import make_config
from trainables.config import Value, flatten
from trainables.files import write_json

STUDY = "cliptune"
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Search:
    """What is searched, and with which budget."""

    adapters: tuple[str, ...]
    metric: str
    trials: int
    epochs: int
    seed: int
    fixed: dict[str, Value]  # dotted fields that every trial gets, beside `epochs`


def open_study(folder: Path) -> optuna.Study:
    """The study in `folder`, created if needed. The caller must be the only writer.

    A writer that was killed may have left half a line and its lock behind; both are removed here.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = folder / "journal.log"
    if journal.exists():
        data = journal.read_bytes()
        if not data.endswith(b"\n"):
            with journal.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
        for lock in folder.glob("journal.log.*"):
            lock.unlink()
    storage = JournalStorage(JournalFileBackend(str(journal)))
    if STUDY in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=STUDY, storage=storage)
    return optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")


def enqueue_recipes(study: optuna.Study, search: Search) -> None:
    """The published recipe of each adapter becomes its first trial."""
    for adapter in search.adapters:
        recipe = flatten(make_config(adapter))
        point: dict[str, Any] = {f"{adapter}/{key}": recipe[key] for key in SPACES[adapter]}
        if len(search.adapters) > 1:
            point["adapter"] = adapter
        study.enqueue_trial(point, user_attrs={"recipe": True}, skip_if_exists=True)


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
        self.unfinished = study.get_trials(states=(TrialState.RUNNING,))
        self.live: dict[str, FrozenTrial] = {}  # Ray's trial id to Optuna's trial

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
        frozen = self.unfinished.pop(0) if self.unfinished else self._ask()
        if frozen is None:  # but one that is running may lose its worker and come back
            return None if self.live else Searcher.FINISHED
        if "config" not in frozen.user_attrs:
            frozen = self._sample(optuna.Trial(self.study, frozen._trial_id))
        self.live[trial_id] = frozen
        return {"number": frozen.number, "values": frozen.user_attrs["config"]}

    def _ask(self) -> FrozenTrial | None:
        trials = self.study.get_trials(deepcopy=False)
        asked = sum(t.state != TrialState.WAITING for t in trials)
        if asked >= self.search.trials:
            return None
        self.study.sampler = self._sampler(asked)
        number = self.study.ask().number
        return self.study.get_trials(deepcopy=False)[number]

    def _sampler(self, asked: int) -> optuna.samplers.TPESampler:
        with warnings.catch_warnings():  # `group`, needed where adapters differ, is experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=self.search.seed * 1_000_003 + asked,
                n_startup_trials=max(4, self.search.trials // 4),
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _sample(self, trial: optuna.Trial) -> FrozenTrial:
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
        return self.study.get_trials(deepcopy=False)[trial.number]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self.live and "epoch" in result:
            frozen = self.live[trial_id]
            storage, key = self.study._storage, frozen._trial_id
            if result["epoch"] not in storage.get_trial(key).intermediate_values:
                value = float(result[self.search.metric])
                storage.set_trial_intermediate_value(key, int(result["epoch"]), value)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error or trial_id not in self.live or not result:
            return  # `Losses` decides, it knows the reason
        state = result.get("state")
        if state == "interrupted":
            del self.live[
                trial_id
            ]  # stays RUNNING in the journal: a resumed search goes on with it
        elif state == "failed":
            self.fail(trial_id, result["reason"])
        else:
            self.on_trial_result(trial_id, result)
            frozen = self.live.pop(trial_id)
            self._note(frozen, result)
            done = TrialState.COMPLETE if state == "finished" else TrialState.PRUNED
            value = result["best"] if state == "finished" else None  # PRUNED takes none
            self.study.tell(frozen.number, value, state=done)
            write_best(self.study, self.search, self.folder)

    def _note(self, frozen: FrozenTrial, result: dict[str, Any]) -> None:
        notes = {
            "best": result["best"],
            "epochs": result["epoch"],
            "best_epoch": result["best_epoch"],
            "seconds": result["seconds"],
            "trainable_parameters": result["trainable_parameters"],
            "metrics": {k: v for k, v in result.items() if k.startswith("val/")},
        }
        for name, value in notes.items():
            self.study._storage.set_trial_user_attr(frozen._trial_id, name, value)

    def hand_out_again(self, trial_id: str) -> None:
        """Give a trial that lost its worker to the next one that is free."""
        frozen = self.live.pop(trial_id, None)
        if frozen is not None:
            self.unfinished.append(frozen)

    def fail(self, trial_id: str, reason: str) -> None:
        frozen = self.live.pop(trial_id, None)
        if frozen is not None:
            self.study._storage.set_trial_user_attr(frozen._trial_id, "reason", reason)
            self.study.tell(frozen.number, state=TrialState.FAIL)


class Losses(Callback):
    """What becomes of a trial that ended in an exception: its worker or its node died, or a bug.

    Its checkpoint is on disk, so it is handed out again, `retries` times, before it is told FAIL.
    Tune's own retries are off: it gives a trial up at once if the worker dies between two trials.
    """

    retries = 2

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher
        self.losses: Counter[int] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        del iteration, trials, info
        number = trial.config["number"]
        self.losses[number] += 1
        if self.losses[number] <= self.retries:
            self.searcher.hand_out_again(trial.trial_id)
            return
        lines = [line for line in (trial.get_error() or "").splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else "the worker died"
        self.searcher.fail(trial.trial_id, f"lost {self.losses[number]} times: {reason}")


class Progress(Callback):
    """A line for each trial that ends: what it reached, the best so far, the rate, the ETA."""

    def __init__(self, study: optuna.Study, search: Search) -> None:
        self.study, self.search = study, search
        self.started, self.already = time.monotonic(), self._ended()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _ended(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=DONE))

    def on_trial_complete(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        del iteration, trials, info
        self._line(trial)

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        del iteration, trials, info
        self._line(trial)

    def _line(self, trial: RayTrial) -> None:
        frozen = self.study.get_trials(deepcopy=False)[trial.config["number"]]
        if not frozen.state.is_finished():
            return  # interrupted, or to be handed out again
        ended = self._ended()
        spent = time.monotonic() - self.started
        left = max(self.search.trials - ended, 0) * spent / max(ended - self.already, 1)
        reached = frozen.user_attrs.get("best")
        value = "      " if reached is None else f"{reached:.4f}"
        top = best_trial(self.study)
        best = f"best {top.user_attrs['best']:.4f} (trial {top.number})" if top else "no result yet"
        adapter = frozen.user_attrs["config"]["name"]
        reason = frozen.user_attrs.get("reason", "")
        epochs, state = len(frozen.intermediate_values), frozen.state.name.lower()
        print(
            f"[{ended}/{self.search.trials}] trial {frozen.number:>3} {adapter:<12} "
            f"{state:<8} {value} at epoch {epochs:>2} | "
            f"{best} | {60 * max(ended - self.already, 1) / spent:.1f} trials/min, "
            f"about {left:.0f} s left {reason}",
            flush=True,
        )


def replayed_asha(study: optuna.Study, search: Search, eta: int, grace: int) -> ASHAScheduler:
    """ASHA on epochs, its rungs filled with what ended trials of the study reached there."""
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=search.metric,
        mode="max",
        max_t=search.epochs,
        grace_period=min(grace, search.epochs),
        reduction_factor=eta,
    )
    for trial in study.get_trials(deepcopy=False, states=DONE):
        if trial.state == TrialState.FAIL:
            continue
        past = SimpleNamespace(trial_id=f"past-{trial.number}")
        for epoch, value in sorted(trial.intermediate_values.items()):
            scheduler._brackets[0].on_result(past, epoch, value)
    return scheduler


def rungs(epochs: int, eta: int, grace: int) -> list[int]:
    """The epochs at which ASHA decides."""
    marks, mark = [], grace
    while mark < epochs:
        marks.append(mark)
        mark *= eta
    return [*marks, epochs]


def best_trial(study: optuna.Study, adapter: str | None = None) -> FrozenTrial | None:
    """The trial with the best val value at any epoch; ties go to the earlier one.

    PRUNED trials count: their `best/` was measured like any other.
    """
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    fit = [t for t in ended if adapter in (None, t.user_attrs["config"]["name"])]
    return max(fit, key=lambda t: float(t.user_attrs["best"]), default=None)


def write_best(study: optuna.Study, search: Search, folder: Path) -> None:
    """`best.json`: the winner on val, and each adapter's own."""

    def entry(trial: FrozenTrial) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "adapter": trial.user_attrs["config"]["name"],
            "value": trial.user_attrs["best"],
            "path": f"trials/{trial.number:04d}",
        }

    top = best_trial(study)
    if top is None:
        return
    own: dict[str, Any] = {}
    for name in search.adapters:
        found = best_trial(study, name)
        if found is not None:
            own[name] = entry(found)
    write_json(folder / "best.json", entry(top) | {"metric": search.metric, "per_adapter": own})


def states(study: optuna.Study) -> dict[str, int]:
    """How many trials are in which state."""
    found: Sequence[FrozenTrial] = study.get_trials(deepcopy=False)
    return {s.name: sum(t.state == s for t in found) for s in TrialState}
