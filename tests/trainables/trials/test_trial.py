"""A trial as Tune sees it: an epoch a step, the unreported first, its own failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.trials.jobs import Job
from trainables.trials.runners import InProcess
from trainables.trials.workbench import TrialSettings

METRIC = "val/t2i_mrr"
VALUES = {"name": "soft_prompt", "epochs": 3, "batch_size": 16, "optim.lr": 1e-2}


@pytest.fixture
def runner(tmp_path: Path, features: Path) -> InProcess:
    return InProcess(TrialSettings(features, tmp_path, METRIC, threads=0))


def steps(runner: InProcess, job: Job) -> list[dict[str, Any]]:
    runner.start(job)
    results = [runner.advance()]
    while not results[-1]["done"]:
        results.append(runner.advance())
    return results


def test_a_trial_reports_what_the_study_missed_and_trains_nothing_twice(
    runner: InProcess, tmp_path: Path
) -> None:
    whole = steps(runner, Job(1, VALUES, 0))
    assert [r["epoch"] for r in whole] == [1, 2, 3]
    assert [r["state"] for r in whole] == ["running", "running", "finished"]
    stamp = (tmp_path / "trials/0001/last/manifest.json").stat().st_mtime_ns
    assert steps(runner, Job(1, VALUES, 1)) == whole[1:]  # killed when epoch 1 had been told
    assert steps(runner, Job(1, VALUES, 3)) == whole[2:]  # killed before the end was told
    assert (tmp_path / "trials/0001/last/manifest.json").stat().st_mtime_ns == stamp


def test_with_too_little_memory_at_the_start_a_trial_waits(
    runner: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\n Tried to allocate 2 GiB.")

    monkeypatch.setattr(runner.workbench, "start", full)
    (result,) = steps(runner, Job(1, VALUES, 0))
    assert result["state"] == "waits"
    assert result["reason"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
    assert not result["common"]  # of workers that train together, it may befall one


def test_a_bug_is_no_result(runner: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(runner.workbench, "start", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        steps(runner, Job(1, VALUES, 0))


def test_divergence_is_told_with_its_reason(runner: InProcess) -> None:
    (result,) = steps(runner, Job(1, VALUES | {"optim.lr": 1e30, "optim.clip_norm": 0}, 0))[-1:]
    assert result["state"] == "failed"
    assert result["reason"].split(":")[0] in ("Diverged", "DataError")
