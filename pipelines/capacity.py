"""What a Ray cluster holds, what its autoscaler can bring, and the wait for it.

Flows in: `--gpus` and `--wait`, and a connected Ray. Flows out: how many GPUs a worker asks for,
once the first worker's place is there; or an error that says why it is not.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.console import say
from pipelines.ranges import MANY
from trainables.errors import CliptuneError, ConfigError

Gpus = float | Literal["auto"]

LAUNCHED_WITH = Path("~/ray_bootstrap_config.yaml")  # on the head node that `ray up` started
SAY_EVERY = 30  # seconds, while waiting


def check_gpus(gpus: Gpus, together: int = 1, flag: str = "workers") -> None:
    """Raise unless `--gpus` is a number that Ray can give to each of `together` workers of one
    run."""
    if gpus == "auto":
        return
    if not (0.01 <= gpus < 1 or (0 <= gpus <= MANY and gpus == int(gpus))):
        raise ConfigError(
            f"`--gpus` must be `auto`, a fraction from 0.01 to 1, or whole, got {gpus}."
        )
    if together > 1 and gpus % 1:
        raise ConfigError(
            f"`--gpus` must be whole with `--{flag} {together}`, got {gpus:g}: workers that train "
            "together cannot share a card."
        )


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    name: str  # of its type, or its address
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"`{self.name}` ({self.cpus:g} CPUs, {self.gpus:g} GPUs)"

    def holds(self, cpus: float, gpus: float) -> int:
        """How many workers of that size fit. A fraction of a GPU is a part of one card."""
        by_cpu = int(self.cpus / cpus + 1e-6)
        if not gpus:
            return by_cpu
        by_gpu = int(self.gpus) * int(1 / gpus + 1e-6) if gpus < 1 else int(self.gpus // gpus)
        return min(by_cpu, by_gpu)


@dataclass(frozen=True)
class Capacity:
    """The nodes that are up, and all that can be up at once where an autoscaler says so."""

    up: tuple[Node, ...]
    grows: bool = False  # an autoscaler starts nodes
    most: tuple[Node, ...] = ()  # (): not known; then `up` is what can be planned with

    def __str__(self) -> str:
        cpus, gpus = sum(node.cpus for node in self.up), sum(node.gpus for node in self.up)
        return f"{cpus:g} CPUs and {gpus:g} GPUs now"

    @property
    def best(self) -> tuple[Node, ...]:
        return self.most or self.up

    @property
    def known(self) -> bool:
        """Whether `best` is all that there can ever be."""
        return bool(self.most) or not self.grows

    def gpus(self, asked: Gpus) -> float:
        """The GPUs of a worker: `auto` is 1 where there are GPUs or the autoscaler could bring
        them."""
        if asked != "auto":
            return float(asked)
        if any(node.gpus for node in self.best):
            return 1.0
        if not self.known:
            raise ConfigError(
                f"`--gpus` must be a number here, got `auto`: the cluster has {self}, and what its "
                "autoscaler can bring cannot be read. 1 asks for a GPU a worker, 0 for none."
            )
        return 0.0

    def hosts(self, cpus: float, gpus: float) -> tuple[Node, ...]:
        """The nodes that hold a worker of that size. Raises where there can be none."""
        hosts = tuple(node for node in self.best if node.holds(cpus, gpus))
        if not hosts and self.known:
            largest = max(self.best, key=lambda node: (node.gpus, node.cpus) if gpus else node.cpus)
            raise CliptuneError(
                f"a worker needs {needs(cpus, gpus)}, and no node can hold it: the cluster has "
                f"{self}, and its largest node is {largest}."
            )
        return hosts


def needs(cpus: float, gpus: float) -> str:
    """A worker's resources in words: `1 CPU and 0.5 GPU`."""
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def capacity() -> Capacity:
    """The capacity of the cluster that this process is connected to."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    up = tuple(_node(node["NodeManagerHostname"], node["Resources"]) for node in alive)
    # Ray labels the nodes of its cluster launcher and of KubeRay with their type.
    grows = any("ray.io/node-group" in node.get("Labels", {}) for node in alive)
    launched = LAUNCHED_WITH.expanduser()
    return Capacity(up, grows, _most(launched) if grows and launched.is_file() else ())


def _node(name: str, resources: dict[str, float]) -> Node:
    return Node(name, float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))


def _most(path: Path) -> tuple[Node, ...]:
    """All nodes that the cluster launcher's file allows at once, the head first."""
    import yaml

    config = yaml.safe_load(path.read_text())
    types, head = config["available_node_types"], config["head_node_type"]
    workers = [
        _node(name, kind.get("resources", {}))
        for name, kind in types.items()
        for _ in range(0 if name == head else kind.get("max_workers", config["max_workers"]))
    ]
    workers.sort(key=lambda node: -node.gpus)
    return (_node(head, types[head].get("resources", {})), *workers[: config["max_workers"]])


def await_place(workers: Iterable[dict[str, float]], minutes: float) -> None:
    """Wait until there is room for all of `workers` at once, at most so long. The request makes an
    autoscaler start nodes, which then stay until the work itself asks."""
    from ray.util import placement_group, remove_placement_group

    bundles = list(workers)
    group = placement_group(bundles)
    try:
        _wait(group.wait, bundles, minutes)
    finally:
        remove_placement_group(group)


def _wait(ready: Callable[[int], bool], bundles: list[dict[str, float]], minutes: float) -> None:
    one = needs(bundles[0]["CPU"], bundles[0].get("GPU", 0.0))
    asked = one if len(bundles) == 1 else f"{len(bundles)} workers of {one} each"
    end, pause = time.monotonic() + 60 * minutes, 2  # what is free is given at once
    while not ready(pause):
        left = end - time.monotonic()
        if left <= 0:
            raise CliptuneError(
                f"no room for {asked} came within `--wait {minutes:g}` minutes: the cluster has "
                f"{capacity()}, its autoscaler says: {autoscaler_says()}."
            )
        say(f"waiting for {asked}, {left / 60:.1f} minutes at most: the cluster has {capacity()}.")
        pause = max(1, int(min(SAY_EVERY, left)))


def autoscaler_says() -> str:
    """The part of `ray status` about nodes that come, failed to come, or are asked for."""
    import ray

    beside = Path(sys.executable).with_name("ray")
    command = str(beside) if beside.is_file() else "ray"
    address = ray.get_runtime_context().gcs_address
    try:
        status = [command, "status", "--address", address]
        told = subprocess.run(status, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nothing ({error})"
    return read_status(told.stdout)


def read_status(text: str) -> str:
    """The parts of `ray status` that say why nodes do not come, in a line."""
    parts: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith(" "):
            parts.setdefault(heading, []).append(line.strip(" ,"))
        else:
            heading = line.strip().rstrip(":")
    wanted = ("Pending", "Recent failures", "Pending Demands")
    told = [f"{name.lower()}: {', '.join(parts[name])}" for name in wanted if name in parts]
    return "; ".join(told) or "nothing"
