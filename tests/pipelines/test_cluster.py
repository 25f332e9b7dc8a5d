"""A cluster that cannot be reached, or goes away, is said in a sentence and in bounded time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from pipelines import cluster
from tests import ROOT
from trainables.errors import CliptuneError


def test_an_address_without_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # and never listens
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setattr(cluster, "REACHED_IN", 0.1)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(CliptuneError, match=f"`RAY_ADDRESS` must be .*, got `{address}`"):
            cluster.connect()


def test_what_ray_resolves_itself_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.reached("auto", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert cluster.reached(f"ray://127.0.0.1:{server.getsockname()[1]}", 5)


def test_why_a_group_ended_is_never_empty() -> None:
    assert cluster.cause(RuntimeError()) == "RuntimeError"
    assert cluster.cause(RuntimeError("Timed out. Look at the docs.")) == "Timed out"


def test_a_ray_that_does_not_come_up_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(CliptuneError, match=r"this machine, got: The current node timed .* again"):
        cluster.connect()


@pytest.mark.parametrize("where", ["the cluster", "the Ray of this machine"])
def test_a_process_whose_cluster_is_gone_ends_and_says_so(where: str) -> None:
    """Of a cluster elsewhere, and of one here of which a process is left."""
    with (
        socket.create_server(("127.0.0.1", 0)) as head,
        socket.create_server(("127.0.0.1", 0)) as stays,
    ):
        address, other = ("{}:{}".format(*one.getsockname()) for one in (head, stays))
        code = (
            "import threading; from pipelines.cluster import hold_on\n"
            f"of = ({ ({address: 0.2, other: 60})!r}, lambda: True)\n"
            "threading.Thread(target=hold_on, args=of, daemon=True).start()\n"
            "threading.Event().wait()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | ({"RAY_ADDRESS": address} if where == "the cluster" else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        head.accept()[0].close()  # it was there once
        head.close()
        _, error = process.communicate(timeout=600)
    assert process.returncode == 2
    assert error.startswith(f"error: {where} at `{address}` is gone.")
    assert "the same command goes on" in error


LIFE = """
from pipelines.cluster import connect
connect()
import ray, time
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["raylet", "gcs_server"])
def test_a_command_whose_ray_was_killed_says_so(which: str) -> None:
    """Ray itself ends the process without a word, or hangs for a minute."""
    process = subprocess.Popen(
        [sys.executable, "-c", LIFE],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    own = psutil.Process(process.pid).children(recursive=True)
    (found,) = (one for one in own if one.name() == which)
    found.send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 2, error
    assert f"error: the Ray of this machine at `{address}` is gone." in error


INTERRUPTED = """
from pipelines.cluster import connect, places_freed
connect()
import ray
from ray.util import placement_group, placement_group_table
before = placement_group([{"CPU": 0.1}])
try:
    with places_freed():
        ray.get(placement_group([{"CPU": 0.1}]).ready())
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
found = placement_group_table()
left = [name for name, one in found.items() if one["state"] != "REMOVED"]
print(len(found), left == [before.id.hex()])
"""


@pytest.mark.slow
def test_what_was_interrupted_holds_no_place() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "2 True\n", done.stderr
