"""The search's memory: an Optuna study in a journal beside the run.

Flows in: a study's folder. Flows out: the study, and facts about its trials.

The journal is the one truth. Ray Tune's own experiment state is never read back: a restarted search
asks the journal which trials are finished, goes on with those that were running under their own
numbers, and then samples new ones. Nothing is run twice, lost, or doubled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.tune.study import journal
from pipelines.tune.study.journal import STUDY, Journal, Storage

OVER = "over a limit"  # noted of a trial that is never chosen
RACE = "race"  # noted of a trial: how its adapter's turn came
ADAPTER = "adapter"  # the parameter that says which adapter a trial is of
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def storage_of(study: optuna.Study) -> Storage:
    """The storage of a study of `open_study`, for facts that Optuna lets nobody tell a study."""
    storage = study._storage
    assert isinstance(storage, Storage)
    return storage


def batch(study: optuna.Study) -> contextlib.AbstractContextManager[None]:
    """A context in which all that the study is told is written at once."""
    return storage_of(study).journal.batch()


def trial_id(study: optuna.Study, number: int) -> int:
    """The storage's id of trial `number`."""
    storage = storage_of(study)
    own = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(own, number)


def open_study(folder: Path, retains: bool = False) -> optuna.Study:
    """The study in `folder`, created if needed, with one goal or two. The caller must be the only
    writer. Raises `Altered` where its journal is not as it was written."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / journal.NAME
    journal.settle(path)
    storage = Storage(Journal(path))
    if STUDY in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=STUDY, storage=storage)
    directions = [optuna.study.StudyDirection.MAXIMIZE] * (1 + retains)
    return optuna.create_study(study_name=STUDY, storage=storage, directions=directions)


def adapter_of(trial: FrozenTrial) -> str | None:
    """The adapter of a trial; None: it has none yet."""
    if ADAPTER in trial.params:
        return str(trial.params[ADAPTER])
    # Of a single adapter of which nothing is searched, its configuration alone says so.
    alone = trial.user_attrs.get("config", {}).get("name")
    return next((name.partition("/")[0] for name in trial.params), alone)


def best_value(trial: FrozenTrial) -> float:
    return float(trial.user_attrs.get("best", "-inf"))


def frozen_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """Trial `number` as the journal has it."""
    return storage_of(study).get_trial(trial_id(study, number))


def goals(trial: FrozenTrial) -> tuple[float, float | None]:
    """The values of a trial that ended: the metric, and what it retained where that was measured
    and applies."""
    return float(trial.user_attrs["best"]), trial.user_attrs.get("retained")


def states(study: optuna.Study) -> dict[str, int]:
    """How many trials are in which state."""
    found: Sequence[FrozenTrial] = study.get_trials(deepcopy=False)
    return {s.name: sum(t.state == s for t in found) for s in TrialState}
