"""Warm groups of Ray Train workers that train trials together.

A fresh `TorchTrainer` costs 16 to 27 s on two cores, mostly process starts and imports. So a group
is one long `TorchTrainer` run that serves many trials: it takes a job from the switchboard, trains
an epoch for each call, and takes the next job. A trial is then a thin caller. Stopping is
cooperative: a group between two calls is idle, and nothing has to be killed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.cluster import cause
from trainables.distributed import STEP_SECONDS, Worker, join
from trainables.errors import CliptuneError
from trainables.trials.jobs import Job
from trainables.trials.runners import InProcess
from trainables.trials.workbench import TrialSettings

GROUP_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # one that waits for a dead one never ends
}
STARTS = 2  # a group that dies so often in a row before it could take a job is given up
STOP_CHECK_STEPS = 10  # a group agrees on stopping by a broadcast, every so many steps


class Switchboard:
    """Passes calls from trials to groups and results back. Either side may die at any time."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.waiting: asyncio.Queue[str | None] = asyncio.Queue()
        self.jobs: dict[str, Job] = {}
        self.calls: dict[str, asyncio.Queue[str]] = {}
        self.results: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self.held: dict[int, str] = {}  # slot to job
        self.takes: Counter[int] = Counter()  # slot to how often its group asked for a job, or died
        self.deaths: Counter[int] = Counter()  # slot to those in a row before a job was taken
        self.given_up: dict[int, str] = {}  # slot to the reason
        self.stopped = False

    async def open(self, name: str, job: Job) -> None:
        for other in [n for n, one in self.jobs.items() if one.number == job.number]:
            await self.close(other)  # its caller died, or it would not be handed out again
        self.jobs[name] = job
        self.calls[name], self.results[name] = asyncio.Queue(), asyncio.Queue()
        await self.waiting.put(name)
        await self._tell_if_no_group_is_left()

    async def advance(self, name: str) -> dict[str, Any]:
        """One epoch of a job, by whichever group has taken it or will."""
        await self.calls[name].put("advance")
        return await self.results[name].get()

    async def close(self, name: str) -> None:
        if self.jobs.pop(name, None) is not None:
            await self.calls[name].put("close")

    async def died(self, slot: int, reason: str) -> bool:
        """The group in `slot` is dead; whether it is to be started again."""
        await self._lose(slot, reason)
        self.takes[slot] += 1  # one that still asks for a job asks for nobody
        self.deaths[slot] += 1
        if self.deaths[slot] >= STARTS:
            await self.give_up(slot, reason)
        return not self.stopped and slot not in self.given_up

    async def give_up(self, slot: int, reason: str) -> None:
        """The group in `slot` would never come up."""
        if slot not in self.given_up:
            self.given_up[slot] = reason
            await self._tell_if_no_group_is_left()

    async def _lose(self, slot: int, reason: str) -> None:
        lost = self.held.pop(slot, None)
        if lost in self.jobs:
            await self.results[lost].put(
                {"lost": f"the worker group in slot {slot} died: {reason}"}
            )

    async def _tell_if_no_group_is_left(self) -> None:
        """No job will be taken any more: each stays as it is, for whoever goes on with the search
        when the reason is gone."""
        if len(self.given_up) == self.groups:
            reasons = "; ".join(dict.fromkeys(self.given_up.values()))
            reason = f"no group of workers comes up: {reasons}"
            for name, job in self.jobs.items():
                told = {"number": job.number, "state": "interrupted", "reason": reason}
                await self.results[name].put(told | {"done": True})

    async def take(self, slot: int) -> tuple[str, Job] | None:
        """The next job for the group in `slot`; None: no more. A job it held before was lost."""
        await self._lose(slot, "its successor is here")
        self.deaths[slot] = -1  # its own does not count: it came up
        self.takes[slot] += 1
        take = self.takes[slot]
        while not self.stopped:
            name = await self.waiting.get()
            if take != self.takes[slot]:  # who asked has died meanwhile
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

    async def stop(self) -> dict[int, str]:
        """End all groups; why those that were given up were."""
        self.stopped = True
        for _ in range(1024):
            await self.waiting.put(None)
        return self.given_up


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
def host_group(
    board: Any, settings: TrialSettings, slot: int, scaling: train.ScalingConfig
) -> None:
    """Keep one warm group alive until the switchboard stops, or gives it up."""
    trainer = TorchTrainer(
        serve,
        train_loop_config={"board": board, "settings": settings, "slot": slot},
        torch_config=TorchConfig(timeout_s=STEP_SECONDS),
        scaling_config=scaling,
        run_config=train.RunConfig(
            name=f"group-{slot}",
            storage_path=str(settings.folder / "ray"),
            # Ray Train counts deaths in all; what matters is whether the group ever comes up.
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    again = True
    while again:
        try:
            trainer.fit()
            return
        except Exception as error:
            again = ray.get(board.died.remote(slot, cause(error)))


def serve(config: dict[str, Any]) -> None:
    """The Ray Train worker function: jobs in, epochs out, all workers of the group in step."""
    board, slot, settings = config["board"], config["slot"], config["settings"]
    try:
        worker = join()
        runner = InProcess(settings, worker, agreed_stop(settings.stop_file, worker))
    except CliptuneError as error:  # for a user to mend: another start would end here too
        ray.get(board.give_up.remote(slot, str(error)))
        raise
    while taken := agree(worker, board.take, slot):
        name, job = taken
        runner.start(job)
        while agree(worker, board.next_call, name) == "advance":
            result = runner.advance()
            # What befell one worker alone leaves the others waiting for it in the middle of a step:
            # it says what it was, and then the group must be started anew.
            alone = not result.get("common", True)
            if worker.rank == 0 or alone:
                ray.get(board.put_result.remote(name, result))
            if alone:
                raise RuntimeError(result["reason"])
        runner.close()
        if worker.rank == 0:
            ray.get(board.release.remote(slot))


def agree(worker: Worker, method: Any, *args: Any) -> Any:
    """Worker 0 asks the switchboard; all get the answer."""
    return worker.tell(ray.get(method.remote(*args)) if worker.rank == 0 else None)


def agreed_stop(stop_file: Path, worker: Worker) -> Callable[[], bool]:
    """Asked before each step: whether all workers are to stop here."""
    steps = itertools.count(1)
    return lambda: next(steps) % STOP_CHECK_STEPS == 0 and bool(worker.tell(stop_file.exists()))
