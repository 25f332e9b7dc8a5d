"""What a cluster has and can have, what is asked of it, and what is said where that cannot come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines import capacity
from pipelines.capacity import Capacity, Node, check_gpus, read_status
from pipelines.encode.towers import Resources
from pipelines.tune.workers.division import plan
from tests import ROOT
from tests.autoscaling import autoscaling_cluster
from tests.tiny import tiny_shards
from trainables.errors import CliptuneError, ConfigError

HEAD, G5 = Node("head", 4, 0), Node("gpu", 8, 1)
SHIPPED = Capacity(up=(HEAD,), grows=True, most=(HEAD, *[G5] * 8))
KUBERAY = Capacity(up=(HEAD,), grows=True)


@pytest.mark.parametrize("gpus", [-1.0, float("nan"), float("inf"), 1.5, 0.001])
def test_gpus_that_ray_cannot_give(gpus: float) -> None:
    with pytest.raises(ConfigError, match="`--gpus` must be `auto`, a fraction"):
        check_gpus(gpus)


def test_workers_that_train_together_share_no_card() -> None:
    check_gpus(0.5)
    check_gpus(2.0, 4)
    with pytest.raises(ConfigError, match=r"whole with `--workers-per-trial 2`, got 0\.5"):
        check_gpus(0.5, 2, "workers-per-trial")


def test_a_node_holds_what_fits_on_its_cards() -> None:
    node = Node("gpu", 16, 2)
    assert [node.holds(1, gpus) for gpus in (0, 0.25, 0.3, 0.6, 1, 2, 3)] == [16, 8, 6, 2, 2, 1, 0]
    assert node.holds(12, 0.25) == 1


def test_a_search_on_the_shipped_cluster_asks_for_the_gpus_that_can_come() -> None:
    workers = plan(0, 1, "auto", SHIPPED)
    assert (workers.concurrent, workers.gpus, workers.threads) == (8, 1.0, 8)
    assert workers.trial_resources == {"CPU": 1.0, "GPU": 1.0}
    assert plan(4, 1, "auto", SHIPPED).concurrent == 4
    assert plan(0, 1, 0.25, SHIPPED).concurrent == 32
    group = plan(0, 2, "auto", SHIPPED)
    assert (group.concurrent, group.resources) == (4, {"CPU": 0.9, "GPU": 1.0})


def test_workers_that_train_together_ask_for_the_gpus_that_can_come() -> None:
    scaling = plan(1, 2, "auto", SHIPPED).scaling
    assert (scaling.num_workers, scaling.use_gpu) == (2, True)
    assert scaling.resources_per_worker == {"CPU": 0.9, "GPU": 1.0}


def test_towers_on_the_shipped_cluster_ask_for_the_gpus_that_can_come() -> None:
    towers = Resources.plan("auto", "auto", SHIPPED)
    assert (towers.towers, towers.tower_gpus, towers.tower_cpus, towers.threads) == (8, 1, 4, 8)
    assert Resources.plan(3, "auto", Capacity((Node("here", 8, 2),))).tower_gpus == 0.5
    assert Resources.plan("auto", 0.5, SHIPPED).towers == 16
    assert Resources.plan("auto", 0, SHIPPED).tower_gpus == 0


def test_a_tower_fits_on_one_node() -> None:
    """Half of all CPUs is more than any node has where there are many."""
    assert Resources.plan(1, "auto", Capacity((Node("a", 4, 0),) * 8)).tower_cpus == 2
    one = Resources.plan("auto", 1, Capacity((Node("head", 64, 0), Node("gpu", 4, 1))))
    assert (one.towers, one.tower_cpus) == (1, 2)


@pytest.mark.parametrize("known", [SHIPPED, Capacity((Node("here", 4, 1),))])
def test_more_gpus_than_any_node_has_is_an_error_at_once(known: Capacity) -> None:
    largest = known.best[-1].name
    with pytest.raises(CliptuneError, match=rf"needs .*16 GPU, .*largest node is `{largest}`"):
        plan(0, 1, 16.0, known)
    with pytest.raises(CliptuneError, match="largest node"):
        Resources.plan("auto", 16.0, known)


def test_more_workers_than_can_ever_be_is_an_error_at_once() -> None:
    with pytest.raises(CliptuneError, match="room for 8 workers at most"):
        plan(1, 9, "auto", SHIPPED)


def test_what_cannot_be_read_is_asked_for() -> None:
    """KubeRay's autoscaler tells Ray nothing of its node types."""
    with pytest.raises(ConfigError, match="`--gpus` must be a number here"):
        plan(1, 1, "auto", KUBERAY)
    with pytest.raises(ConfigError, match="`--concurrent` must be at least 1 here"):
        plan(0, 1, 1.0, KUBERAY)
    assert plan(8, 1, 1.0, KUBERAY).trial_resources == {"CPU": 1.0, "GPU": 1.0}
    assert Resources.plan(8, 1.0, KUBERAY).tower_gpus == 1.0


def test_the_shipped_launcher_file_is_read_as_all_that_can_be(tmp_path: Path) -> None:
    assert capacity._most(ROOT / "cluster.yaml") == SHIPPED.most
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text()) | {"max_workers": 3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert capacity._most(tmp_path / "c.yaml") == (HEAD, *[G5] * 3)


def test_the_status_says_why_nodes_do_not_come() -> None:
    told = read_status(
        "Node status\n-----\nActive:\n 1 head\nPending:\n 10.0.0.1: gpu, setting-up\n"
        "Recent failures:\n gpu: InsufficientInstanceCapacity (latest_attempt: 15:03:17)\n\n"
        "Resources\n-----\nTotal Usage:\n 0.0/4.0 CPU\nPending Demands:\n {'GPU': 1.0} * 1\n"
    )
    assert told == (
        "pending: 10.0.0.1: gpu, setting-up; recent failures: gpu: InsufficientInstanceCapacity "
        "(latest_attempt: 15:03:17); pending demands: {'GPU': 1.0} * 1"
    )
    assert read_status("") == "nothing"


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with autoscaling_cluster() as environment:
        yield environment


def on(cluster: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        cwd=ROOT,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=600,
    )


TAKE = """
from pipelines.capacity import capacity
from pipelines.cluster import connect
from pipelines.tune.workers.division import take
from trainables.errors import CliptuneError
connect()
print(capacity())
print(take(0, 1, "auto", 2.0))
from ray.util import placement_group
taken = placement_group([{"GPU": 1.0}] * 2)
assert taken.wait(100)
for asked in (16.0, 1.0):
    try:
        take(0, 1, asked, 0.0)
    except CliptuneError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_cluster_without_gpus_starts_the_node_that_is_asked_for(
    cluster: dict[str, str], tmp_path: Path, clip: Path
) -> None:
    told = on(cluster, "-c", TAKE)
    lines = told.stdout.splitlines()
    assert told.returncode == 0, told.stderr
    assert lines[0] == "2 CPUs and 0 GPUs now"
    assert "4 CPUs and 1 GPUs now, and grows." in told.stdout
    assert "2 at once, in process, 1 GPU a worker." in lines
    assert lines[-2].endswith("and its largest node is `gpu` (2 CPUs, 1 GPUs).")
    assert "no room for 1 CPU and 1 GPU came within `--wait 0` minutes" in lines[-1]
    assert "the cluster has 6 CPUs and 2 GPUs now, its autoscaler says: pending:" in lines[-1]

    shards = tiny_shards(tmp_path / "shards", {"train": 6, "val": 2})
    words = ("--shards", shards, "--backbone", clip, "--out", tmp_path / "features")
    encoded = on(cluster, "-m", "pipelines.encode", *words)
    assert encoded.returncode == 0, encoded.stderr
    assert "2 tower(s) with 1 GPU each" in encoded.stdout
