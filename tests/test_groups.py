"""Groups of Ray Train workers: one that loses a rank, some that cannot start, one that diverges."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.cli import stage_main
from pipelines.cluster import connect
from pipelines.searching.workers import Workers
from trainables.crew import Job
from trainables.trial import TrialSettings

pytestmark = pytest.mark.slow
VALUES = {"name": "soft_prompt", "epochs": 4, "batch_size": 4, "optim.lr": 1e-2}
TWO = Workers(concurrent=1, per_trial=2, cpus=0.9, gpus=0.0, threads=1)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    connect()
    yield
    ray.shutdown()


def settings(tmp_path: Path, features: Path) -> TrialSettings:
    return TrialSettings(features, tmp_path, "val/t2i_mrr", threads=1)


def ranks() -> list[int]:
    """The process ids of this machine's Ray Train workers that this test's Ray started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text()
        except OSError:  # it has ended
            continue
        if "RayTrainWorker" in words:
            found.append(int(path.name))
    return found


def test_a_rank_that_dies_costs_its_trial_no_more_than_the_epoch(
    tmp_path: Path, features: Path
) -> None:
    with TWO.pool(settings(tmp_path, features)) as make_runner:
        runner = make_runner()
        runner.start(Job(1, VALUES, 0))
        results = [runner.advance()]
        os.kill(max(ranks()), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the worker group in slot 0 died"):
            runner.advance()
        runner.start(Job(1, VALUES, 1))  # handed out again
        while not results[-1]["done"]:
            results.append(runner.advance())
        runner.close()
    assert [result["epoch"] for result in results] == [1, 2, 3, 4]
    assert results[-1]["state"] == "finished"


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no features": ({}, "`{}/manifest.json` does not exist."),
    "no place": ({"cpus": 1000.0, "wait": 0.0}, "startup timed out after 5"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_group_that_cannot_start_says_why(case: str, tmp_path: Path, features: Path) -> None:
    few, expected = CASES[case]
    store = tmp_path / "nothing" if case == "no features" else features
    workers = Workers(**{**vars(TWO), **few})
    with workers.pool(settings(tmp_path, store)) as make_runner:
        runner = make_runner()
        runner.start(Job(1, VALUES, 0))
        result = runner.advance()
    assert result["state"] == "interrupted"
    assert expected.format(store) in result["reason"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray's, of its own settings
def test_a_run_by_hand_whose_workers_diverge_ends_in_a_sentence(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--features", str(features), "--out", str(tmp_path / "run"), "--workers", "2"]
    wild = ["epochs=2", "batch_size=16", "optim.lr=1e30", "optim.clip_norm=0"]
    with pytest.raises(SystemExit) as stop:
        stage_main("train", [*flags, "--set", *wild])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "error: the loss became nan at step 1." in said
    assert "Traceback" not in said
