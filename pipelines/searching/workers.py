"""Where a trial trains: in the Tune worker itself, or in a warm group of Ray Train workers.

A fresh `TorchTrainer` costs 16 to 27 s on two cores, mostly process starts and imports. So a group
is one long `TorchTrainer` run that serves many trials: it takes a job from the switchboard, trains
an epoch for each call, and takes the next job. A trial is then a thin caller. Stopping is
cooperative: a group between two calls is idle, and nothing has to be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchTrainer

from pipelines.capacity import Capacity, Gpus, await_place, capacity, needs
from pipelines.console import say
from trainables.errors import CliptuneError, ConfigError
from trainables.loop import Worker
from trainables.trial import InProcess, Job, Runner, TrialSettings

GROUP_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
STOP_CHECK_STEPS = 10  # a group agrees on stopping by a broadcast, every so many steps


@dataclass(frozen=True)
class Workers:
    """How the cluster is divided among trials."""

    concurrent: int
    per_trial: int
    cpus: float  # a worker
    gpus: float  # a worker
    threads: int

    def __str__(self) -> str:
        where = f"{self.gpus:g} GPU" if self.gpus else f"{self.threads} CPU thread(s)"
        kind = (
            "in process" if self.per_trial == 1 else f"in warm groups of {self.per_trial} workers"
        )
        return f"{self.concurrent} at once, {kind}, {where} a worker."

    @property
    def resources(self) -> dict[str, float]:
        """Of a worker."""
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
        """What makes a trial's runner; groups are started before and ended after."""
        if self.per_trial == 1:
            yield functools.partial(InProcess, settings)
            return
        board = ray.remote(num_cpus=0)(Switchboard).remote()
        groups = [
            host_group.options(runtime_env={"env_vars": GROUP_ENV}).remote(
                board, settings, slot, self
            )
            for slot in range(self.concurrent)
        ]
        try:
            yield functools.partial(GroupCall, board)
        finally:
            ray.get(board.stop.remote())
            ray.wait(groups, num_returns=len(groups), timeout=20)


def take(concurrent: int, per_trial: int, gpus: Gpus, wait: float) -> Workers:
    """The division of the cluster, once there is room for one trial; at most `wait` minutes."""
    workers = plan(concurrent, per_trial, gpus, capacity())
    await_place([workers.resources] * per_trial, wait)
    have = capacity()  # anew: only now is it sure how many CPUs stand beside a GPU
    if have.grows:
        say(f"the cluster has {have}, and grows.")
    return plan(concurrent, per_trial, workers.gpus, have)


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


class Switchboard:
    """Passes calls from trials to groups and results back. Either side may die at any time."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[str | None] = asyncio.Queue()
        self.jobs: dict[str, Job] = {}
        self.calls: dict[str, asyncio.Queue[str]] = {}
        self.results: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self.held: dict[int, str] = {}  # slot to job
        self.takes: Counter[int] = Counter()  # slot to how often its group has asked for a job
        self.stopped = False

    async def open(self, name: str, job: Job) -> None:
        for other in [n for n, one in self.jobs.items() if one.number == job.number]:
            await self.close(other)  # its caller died, or it would not be handed out again
        self.jobs[name] = job
        self.calls[name], self.results[name] = asyncio.Queue(), asyncio.Queue()
        await self.waiting.put(name)

    async def advance(self, name: str) -> dict[str, Any]:
        """One epoch of a job, by whichever group has taken it or will."""
        await self.calls[name].put("advance")
        return await self.results[name].get()

    async def close(self, name: str) -> None:
        if self.jobs.pop(name, None) is not None:
            await self.calls[name].put("close")

    async def take(self, slot: int) -> tuple[str, Job] | None:
        """The next job for the group in `slot`; None: no more. A job it held before was lost."""
        lost = self.held.pop(slot, None)
        if lost in self.jobs:
            await self.results[lost].put({"lost": f"the worker group in slot {slot} died"})
        self.takes[slot] += 1
        take = self.takes[slot]
        while not self.stopped:
            name = await self.waiting.get()
            if take != self.takes[slot]:  # who asked has died meanwhile, its successor waits
                await self.waiting.put(name)
                return None
            if name in self.jobs:
                self.held[slot] = name
                return name, self.jobs[name]
        return None

    async def next_call(self, name: str) -> str:
        return await self.calls[name].get()

    async def put_result(self, name: str, result: dict[str, Any]) -> None:
        await self.results[name].put(result)

    async def release(self, slot: int) -> None:
        self.held.pop(slot, None)

    async def stop(self) -> None:
        self.stopped = True
        for _ in range(1024):
            await self.waiting.put(None)


class GroupCall:
    """A trial trained by a group: opens a job, calls for epochs, closes it."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self.name: str | None = None
        self.opened = 0

    def start(self, job: Job) -> None:
        self.close()
        self.opened += 1
        self.name = f"{job.number}-{ray.get_runtime_context().get_actor_id()}-{self.opened}"
        ray.get(self.board.open.remote(self.name, job))

    def advance(self) -> dict[str, Any]:
        result: dict[str, Any] = ray.get(self.board.advance.remote(self.name))
        if "lost" in result:
            raise RuntimeError(result["lost"])  # `Losses` hands the trial out again
        return result

    def close(self) -> None:
        if self.name is not None:
            ray.get(self.board.close.remote(self.name))
            self.name = None


@ray.remote(num_cpus=0)
def host_group(board: Any, settings: TrialSettings, slot: int, workers: Workers) -> None:
    """Keep one warm group alive until the switchboard stops."""
    TorchTrainer(
        serve,
        train_loop_config={"board": board, "settings": settings, "slot": slot},
        scaling_config=workers.scaling,
        run_config=train.RunConfig(
            name=f"group-{slot}",
            storage_path=str(settings.folder / "ray"),
            # A trial that kills its workers is given up by `Losses`; the group lives.
            failure_config=train.FailureConfig(max_failures=-1),
        ),
    ).fit()


def serve(config: dict[str, Any]) -> None:
    """The Ray Train worker function: jobs in, epochs out, all workers of the group in step."""
    board, slot, settings = config["board"], config["slot"], config["settings"]
    context = train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size())
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps % STOP_CHECK_STEPS == 0 and bool(tell(worker, settings.stop_file.exists()))

    runner = InProcess(settings, worker, should_stop)
    while taken := agree(worker, board.take, slot):
        name, job = taken
        runner.start(job)
        while agree(worker, board.next_call, name) == "advance":
            result = runner.advance()
            # What befell one worker alone leaves the others waiting for it in the middle of a step:
            # it says what it was, and then the group must be started anew.
            alone = result["state"] == "failed" and not result["common"]
            if worker.rank == 0 or alone:
                ray.get(board.put_result.remote(name, result))
            if alone:
                raise RuntimeError(result["reason"])
        runner.close()
        if worker.rank == 0:
            ray.get(board.release.remote(slot))


def agree(worker: Worker, method: Any, *args: Any) -> Any:
    """Worker 0 asks the switchboard; all get the answer."""
    return tell(worker, ray.get(method.remote(*args)) if worker.rank == 0 else None)


def tell(worker: Worker, value: Any) -> Any:
    """Worker 0's `value`, for all."""
    from torch.distributed import broadcast_object_list

    values = [value]
    if worker.world > 1:
        broadcast_object_list(values)
    return values[0]
