"""For record keepers: a study of four trials, one complete, one pruned, one failed, one running."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pipelines.records.kinds import Log
from pipelines.tune.recording import recording
from pipelines.tune.study.study import open_study
from trainables.files import append_jsonl, write_hashed

METRIC = "val/t2i_r1"
REASON = "Diverged: the loss became nan at step 1."
VALUES = {"optim.lr": 0.01, "temperature.scale": None, "batch_size": 16}


def begin(folder: Path) -> optuna.Study:
    """The study, its fourth trial after its first epoch."""
    write_hashed(
        folder / "study.json",
        {
            **{"metric": METRIC, "features_key": "f00d", "task": "retrieval", "seed": 3},
            **{"adapters": ["lora", "soft_prompt"], "stopping": {"kind": "asha"}},
        },
    )
    study = open_study(folder)
    for adapter, epochs in (("lora", 3), ("lora", 1), ("soft_prompt", 0), ("soft_prompt", 1)):
        trial = study.ask()
        trial.set_user_attr("config", {"name": adapter, **VALUES})
        for epoch in range(1, epochs + 1):
            reach(folder, trial, epoch)
    for number, state in ((0, TrialState.COMPLETE), (1, TrialState.PRUNED)):
        end(study, number, state)
    failed = optuna.Trial(study, 2)
    failed.set_user_attr("reason", REASON)
    study.tell(failed, state=TrialState.FAIL)
    return study


def told_in_two_goes(keeper: Log, folder: Path) -> None:
    """A study that is interrupted, and goes on to its end."""
    study = begin(folder)
    with pytest.raises(KeyboardInterrupt), recording([keeper], study, folder):
        raise KeyboardInterrupt
    with recording([keeper], study, folder):
        finish(folder, study)


def reach(folder: Path, trial: optuna.Trial, epoch: int) -> None:
    """An epoch of a trial, and what it measured."""
    value = (trial.number + epoch) / 10
    row = {"epoch": epoch, "seconds": 2.0 * epoch, METRIC: value, "train/loss": 1 / epoch}
    append_jsonl(folder / "trials" / f"{trial.number:04d}" / "metrics.jsonl", [row])
    trial.report(value, epoch)


def end(study: optuna.Study, number: int, state: TrialState) -> None:
    trial = optuna.Trial(study, number)
    values = study.get_trials(deepcopy=False)[number].intermediate_values
    best = max(values.values())
    trial.set_user_attr("best", best)
    trial.set_user_attr("best_epoch", max(values))
    study.tell(trial, best if state == TrialState.COMPLETE else None, state=state)


def finish(folder: Path, study: optuna.Study) -> None:
    """Two more epochs of the trial that runs, and the end of the study."""
    for epoch in (2, 3):
        reach(folder, optuna.Trial(study, 3), epoch)
    end(study, 3, TrialState.COMPLETE)
    best = {"adapter": "soft_prompt", "trial": 3, "value": 0.6, "path": "trials/0003"}
    write_hashed(folder / "best.json", best | {"metric": METRIC})
