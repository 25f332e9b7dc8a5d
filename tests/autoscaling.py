"""A Ray cluster on this machine that starts and ends nodes as the cluster launcher's would: Ray's
own autoscaler, with the provider that Ray's tests have, whose nodes are processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launcher_config(port: int) -> dict[str, object]:
    """A head without GPUs; up to two nodes of 2 CPUs and 1 GPU, none at first."""
    provider = {
        "type": "external",
        "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": f"127.0.0.1:{port}",
    }
    kinds = {
        FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    }
    return {
        **{"cluster_name": "fake", "max_workers": 2, "upscaling_speed": 100.0},
        **{"idle_timeout_minutes": 5, "provider": provider, "auth": {}},
        **{"available_node_types": kinds, "head_node_type": FAKE_HEAD_NODE_TYPE},
        **{"file_mounts": {}, "cluster_synced_files": []},
        **{f"{when}_commands": [] for when in ("initialization", "setup", "head_setup")},
        **{f"{when}_commands": [] for when in ("worker_setup", "head_start_ray")},
        **{"worker_start_ray_commands": []},
    }


@contextlib.contextmanager
def autoscaling_cluster() -> Iterator[dict[str, str]]:
    """The environment in which a process finds the cluster, as one on its head node would."""
    home = Path(tempfile.mkdtemp(prefix="as", dir="/tmp"))  # sockets' paths must be short
    port = free_port()
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(launcher_config(port)))
    driver = {**os.environ, "HOME": str(home), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    driver |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    head = {
        **{"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        **{"RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE},
        **{"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID},
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    words = (
        *(f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--num-gpus=0"),
        *("--include-dashboard=false", "--object-store-memory=100000000"),
        *(f"--temp-dir={home}/ray", f"--autoscaling-config={home}/ray_bootstrap_config.yaml"),
    )
    environment = {name: value for name, value in driver.items() if name != "RAY_ADDRESS"} | head
    with (home / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *words],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _await_head(process, home / "head.log")
        yield driver
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # of the nodes it started too
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _await_head(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 600
    while "will now block" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
