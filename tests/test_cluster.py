"""A cluster that cannot be reached, or goes away, is said in a sentence and in bounded time."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cluster
from trainables.errors import CliptuneError

ROOT = Path(__file__).parents[1]


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


def test_a_process_whose_cluster_is_gone_ends_and_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = "{}:{}".format(*head.getsockname())
        code = (
            "import threading; from pipelines.cluster import hold_on\n"
            f"of = ({address!r}, lambda: True, 0.2)\n"
            "threading.Thread(target=hold_on, args=of, daemon=True).start()\n"
            "threading.Event().wait()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        head.accept()[0].close()  # it was there once
    _, error = process.communicate(timeout=600)
    assert process.returncode == 2
    assert error.startswith(f"error: the cluster at `{address}` is gone.")
    assert "the same command goes on" in error
