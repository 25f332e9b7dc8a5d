"""Whole searches on a tiny backbone: finished, interrupted, killed, on a shrinking cluster."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from pipelines.cli import stage_main
from tests import ROOT
from tests.autoscaling import free_port
from trainables.errors import CliptuneError

pytestmark = pytest.mark.slow
SMALL = ["--set", "batch_size=16", "loss.captions_per_image=1"]


def command(features: Path, out: Path, trials: int, *extra: str, epochs: int = 3) -> list[str]:
    return [
        *(sys.executable, "-m", "pipelines.tune", "--features", str(features), "--out", str(out)),
        *("--trials", str(trials), "--epochs", str(epochs), *extra, *SMALL),
    ]


def tune(features: Path, out: Path, number: int, *extra: str) -> subprocess.CompletedProcess[str]:
    words = command(features, out, number, *extra)
    return subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=False)


def here(
    capsys: pytest.CaptureFixture[str], features: Path, out: Path, number: int, *extra: str
) -> tuple[int | str | None, str, str]:
    """The exit code and the words of a search that starts no Ray, in this process."""
    code: int | str | None = 0
    try:
        stage_main("tune", command(features, out, number, *extra)[3:])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def trials(out: Path) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(out / "journal.log")))
    return optuna.load_study(study_name="cliptune", storage=storage).trials


def ended(out: Path) -> list[FrozenTrial]:
    with contextlib.suppress(KeyError, FileNotFoundError):
        return [t for t in trials(out) if t.state.is_finished()]
    return []


def wait_until(
    rule: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 600
) -> None:
    limit = time.monotonic() + seconds
    while not rule():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)


def epochs_of(out: Path) -> dict[str, int]:
    """Finished epochs by trial folder."""
    found = {}
    for path in sorted((out / "trials").glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        found[path.parent.name] = len(rows)
    return found


@contextlib.contextmanager
def started(words: list[str], **env: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        text=True,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_a_search_fails_its_own_trials_alone_and_prunes_and_says_what_to_do_next(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, diverging = tmp_path / "study", ("--search", "optim.lr=0.002,1e38")
    done = tune(features, out, 6, *diverging)
    assert done.returncode == 0, done.stdout + done.stderr
    found = trials(out)
    assert len(found) == 6
    failed = {t.number for t in found if t.state == TrialState.FAIL}
    assert failed == {t.number for t in found if t.user_attrs["config"]["optim.lr"] == 1e38}
    assert failed
    assert all("Diverged" in found[number].user_attrs["reason"] for number in failed)
    others = [t for t in found if t.number not in failed]
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in others)
    assert any(t.state == TrialState.COMPLETE for t in others)
    best = json.loads((out / "best.json").read_text())
    assert best["value"] == max(t.user_attrs["best"] for t in others)
    assert (out / best["path"] / "best" / "adapter.safetensors").is_file()
    assert (out / "zero_shot" / "metrics.jsonl").is_file()
    assert "cliptune evaluate --run" in done.stdout
    shown = {path.parent.name[:4] for path in (out / "records").rglob("events.out.tfevents*")}
    assert shown == {f"{trial.number:04d}" for trial in found}  # TensorBoard
    assert not list((out / "ray").rglob("events.out.tfevents*"))

    before = (out / "journal.log").read_bytes()
    code, said, _ = here(capsys, features, out, 6, *diverging)
    assert code == 0
    assert "nothing to do" in said
    assert (out / "journal.log").read_bytes() == before

    code, _, error = here(capsys, features, out, 6, *diverging, "--seed", "9")
    assert code == 2
    assert "another study" in error
    assert "Traceback" not in error


def test_a_wish_that_no_cluster_can_grant_leaves_the_folder_for_another(
    tmp_path: Path,
    features: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(dashboard: bool) -> None:
        raise CliptuneError("no room for this.")

    monkeypatch.setattr("pipelines.cluster.connect", refuse)
    for wish in (["--workers-per-trial", "3"], ["--seed", "5"]):
        words = command(features, tmp_path / "study", 2, *wish)[3:]
        with pytest.raises(SystemExit):
            stage_main("tune", words)
        assert capsys.readouterr().err == "error: no room for this.\n"


def test_sigint_saves_prints_the_best_and_exits_130_and_a_second_run_is_refused_meanwhile(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    words = command(features, out, 500, epochs=200)
    with started(words) as process:
        wait_until(lambda: len(ended(out)) >= 1, process)
        code, _, error = here(capsys, features, out, 500)
        assert code == 2
        assert f"process {process.pid}" in error
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=600)  # a busy machine is not what is tested
        assert process.returncode == 130
    assert "the same command goes on" in said
    assert "best so far: trial" in said
    assert any(t.state == TrialState.RUNNING for t in trials(out))


def test_a_killed_driver_resumes_and_no_trial_is_lost_doubled_or_run_again(
    tmp_path: Path, features: Path
) -> None:
    out = tmp_path / "study"
    words = command(features, out, 8)
    with started(words) as process:
        wait_until(lambda: len(ended(out)) >= 2, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = {t.number: t for t in ended(out)}
    stamps = {
        t: (out / "trials" / f"{t:04d}" / "last" / "manifest.json").stat().st_mtime_ns
        for t in finished
    }
    done = tune(features, out, 8)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {t.number: t for t in trials(out)}
    assert sorted(after) == list(range(8))
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in after.values())
    for number, trial in finished.items():
        assert after[number].datetime_complete == trial.datetime_complete
        path = out / "trials" / f"{number:04d}" / "last" / "manifest.json"
        assert path.stat().st_mtime_ns == stamps[number]
    assert len(epochs_of(out)) == 8


def test_trials_of_two_train_workers_run_in_a_warm_group(tmp_path: Path, features: Path) -> None:
    out = tmp_path / "study"
    done = tune(features, out, 4, "--workers-per-trial", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = trials(out)
    assert [t.state.is_finished() for t in found] == [True] * 4
    assert all(t.state != TrialState.FAIL for t in found)
    assert "warm groups of 2 workers" in done.stdout


@contextlib.contextmanager
def ray_head(folder: Path) -> Iterator[dict[str, str]]:
    """A head node of its own on this machine, ended by its own pids; gives its environment."""
    ray = str(Path(sys.executable).with_name("ray"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a job's `python`
    env = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PATH": path}
    port, dashboard, agent = (free_port() for _ in range(3))
    head = subprocess.Popen(
        [
            *(ray, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={agent}", "--num-cpus=2", f"--temp-dir={folder}"),
            *("--object-store-memory=200000000", "--disable-usage-stats"),
        ],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "RAY": ray}
    finally:
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.communicate()


def test_ray_job_submit_runs_a_search(tmp_path: Path, features: Path) -> None:
    import tempfile
    import urllib.request

    out = tmp_path / "study"
    with tempfile.TemporaryDirectory(dir="/tmp") as short, ray_head(Path(short)) as env:
        limit = time.monotonic() + 600  # a busy machine is not what is tested
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(env["RAY_API_SERVER_ADDRESS"] + "/api/version").close()
                break
            assert time.monotonic() < limit
            time.sleep(0.3)
        words = [str(w) for w in command(features, out, 3)]
        words[0] = "python"
        done = subprocess.run(
            [env["RAY"], "job", "submit", "--working-dir", ".", "--", *words],
            cwd=_checkout(tmp_path),
            env=os.environ | env,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
    assert [t.state.is_finished() for t in trials(out)] == [True] * 3


def _checkout(tmp_path: Path) -> Path:
    """The three packages alone, as a clean clone would upload them."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pipelines", "trainables", "search_spaces"):
        (folder / name).symlink_to(ROOT / name)
    return folder


CLUSTER = """
import os, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

out, words = Path(sys.argv[1]), sys.argv[2:]
small = {"object_store_memory": 10**8}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
process = subprocess.Popen(words, env=os.environ | {"RAY_ADDRESS": cluster.address})
while len(list((out / "trials").glob("*/metrics.jsonl"))) < 2:
    assert process.poll() is None
    time.sleep(0.05)
cluster.remove_node(nodes[0], allow_graceful=False)
print("NODE LOST", flush=True)
code = process.wait()
cluster.shutdown()
sys.exit(code)
"""


def test_a_search_that_loses_a_node_accounts_for_every_trial(
    tmp_path: Path, features: Path
) -> None:
    out = tmp_path / "study"
    words = command(features, out, 5, "--concurrent", "2", epochs=12)
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(out), *words],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NODE LOST" in done.stdout
    found = trials(out)
    assert len(found) == 5
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in found), done.stdout
    epochs: dict[str, Any] = epochs_of(out)
    assert len(epochs) == 5
