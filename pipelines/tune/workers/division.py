"""How the cluster is divided among trials: each in a Tune worker itself, or in a warm group.

Flows in: the flags, and a connected Ray. Flows out: `Workers`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import ray
from ray import train

from pipelines.capacity import Capacity, Gpus, await_place, capacity, needs
from pipelines.console import say
from pipelines.tune.workers.groups import GROUP_ENV, GroupCall, Switchboard, host_group
from trainables.errors import CliptuneError, ConfigError
from trainables.trials.runners import InProcess, Runner
from trainables.trials.workbench import TrialSettings


@dataclass(frozen=True)
class Workers:
    """How the cluster is divided among trials."""

    concurrent: int
    per_trial: int
    cpus: float  # a worker
    gpus: float  # a worker
    threads: int
    wait: float = 10.0  # minutes until a group has its place

    def __str__(self) -> str:
        kind = (
            "in process" if self.per_trial == 1 else f"in warm groups of {self.per_trial} workers"
        )
        return f"{self.concurrent} at once, {kind}, {self.each} a worker."

    @property
    def each(self) -> str:
        """The resources of a worker, in words."""
        return f"{self.gpus:g} GPU" if self.gpus else f"{self.threads} CPU thread(s)"

    @property
    def share(self) -> float:
        """A worker's share of a card's memory: several trials may be on one card."""
        return self.gpus if 0 < self.gpus < 1 else 1.0

    @property
    def resources(self) -> dict[str, float]:
        """The resources of a worker, as Ray takes them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    @property
    def scaling(self) -> train.ScalingConfig:
        """Of the group that trains one trial."""
        return train.ScalingConfig(
            num_workers=self.per_trial,
            use_gpu=bool(self.gpus),
            resources_per_worker=self.resources,
        )

    @property
    def trial_resources(self) -> dict[str, float]:
        # The caller of a group is thin; the group holds the rest.
        return self.resources if self.per_trial == 1 else {"CPU": 0.01}

    @contextlib.contextmanager
    def pool(self, settings: TrialSettings) -> Iterator[Callable[[], Runner]]:
        """A context with the maker of a trial's runner; groups start before it and end after it."""
        if self.per_trial == 1:
            yield functools.partial(InProcess, settings)
            return
        board = ray.remote(num_cpus=0)(Switchboard).remote(self.concurrent)
        env = GROUP_ENV | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{60 * self.wait + 5:g}"}
        host = host_group.options(runtime_env={"env_vars": env})
        groups = [
            host.remote(board, settings, slot, self.scaling) for slot in range(self.concurrent)
        ]
        try:
            yield functools.partial(GroupCall, board)
        finally:
            given_up = ray.get(board.stop.remote())
            for reason in dict.fromkeys(given_up.values()):
                if len(given_up) < self.concurrent:  # else the search ends in an error that says so
                    say(f"warning: a group of workers was given up: {reason}")
            ray.wait(groups, num_returns=len(groups), timeout=20)


def take(concurrent: int, per_trial: int, gpus: Gpus, wait: float) -> Workers:
    """The division of the cluster, once there is room for one trial; at most `wait` minutes."""
    workers = plan(concurrent, per_trial, gpus, capacity())
    await_place([workers.resources] * per_trial, wait)
    have = capacity()  # anew: only now is it sure how many CPUs stand beside a GPU
    if have.grows:
        say(f"the cluster has {have}, and grows.")
    return replace(plan(concurrent, per_trial, workers.gpus, have), wait=wait)


def plan(concurrent: int, per_trial: int, gpus: Gpus, have: Capacity) -> Workers:
    """Divide what the cluster holds, or can hold where it grows; an impossible wish is an error."""
    gpus = have.gpus(gpus)
    # A little is left of each CPU for the thin callers of the groups.
    share = 1.0 if per_trial == 1 else 0.9
    hosts = have.hosts(1.0, gpus)
    places = sum(node.holds(1.0, gpus) for node in hosts)
    if have.known and places < per_trial:
        raise CliptuneError(
            f"a trial of {per_trial} workers needs {per_trial} times {needs(1.0, gpus)}; the "
            f"cluster has {have}, and room for {places} workers at most."
        )
    concurrent = concurrent or places // per_trial
    if not concurrent:
        raise ConfigError(
            "`--concurrent` must be at least 1 here, got 0: what the cluster's autoscaler can "
            f"bring cannot be read, and it has {have}."
        )
    at_once = min(concurrent * per_trial, places)
    cpus = [node.cpus for node in hosts]
    threads = int(min(sum(cpus) / at_once, max(cpus))) if at_once else 1
    return Workers(concurrent, per_trial, share, gpus, max(1, threads))
