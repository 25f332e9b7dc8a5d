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
from pipelines.tune.workers.division import Workers
from tests.shelf import draw
from tests.tiny import tiny_features, tiny_lm, tiny_shards
from trainables.config import Task
from trainables.features.few_shot import write_draw
from trainables.training.selection import METRICS
from trainables.trials.jobs import Job
from trainables.trials.workbench import TrialSettings

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
    """The process ids of the Ray Train workers that this test's Ray started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text()
            ours = parent(parent(int(path.name))) == os.getpid()  # we, Ray's daemon, the worker
        except OSError:  # it has ended
            continue
        if ours and "RayTrainWorker" in words:
            found.append(int(path.name))
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """What trials of every task need."""
    folder = tmp_path_factory.mktemp("tasks")
    shards = tiny_shards(folder / "shards", rows_per_shard=24)
    tiny_features(folder / "store", val=8, clip=clip, shards=shards)
    write_draw(folder / "draw.json", draw(tuple(range(6)), images=24, val=8))
    tiny_lm(folder / "lm")
    return folder


TASKS: dict[Task, dict[str, Any]] = {
    "classification": {"name": "coop", "batch_size": 4},
    "captioning": {"name": "prefix_captioner", "batch_size": 8, "adapter.max_tokens": 4},
}


@pytest.mark.parametrize("task", TASKS)
def test_a_rank_that_dies_costs_its_trial_no_more_than_the_epoch(
    task: Task, tmp_path: Path, place: Path
) -> None:
    values = {**TASKS[task], "task": task, "epochs": 3}
    if task == "captioning":
        values["adapter.lm"] = str(place / "lm")
    labels = place / "draw.json" if task == "classification" else None
    own = TrialSettings(place / "store", tmp_path, METRICS[task][0], threads=1, draw=labels)
    with TWO.pool(own) as make_runner:
        runner = make_runner()
        runner.start(Job(1, values, 0))
        results = [runner.advance()]
        assert len(ranks()) == 2
        os.kill(max(ranks()), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the worker group in slot 0 died"):
            runner.advance()
        runner.start(Job(1, values, 1))  # handed out again
        while not results[-1]["done"]:
            results.append(runner.advance())
        runner.close()
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert results[-1]["state"] == "finished"


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no features": ({}, "`{}` holds no finished features (no manifest.json)."),
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
