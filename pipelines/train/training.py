"""The training itself: in this process, or in several workers that train together.

Flows in: a job, that is the flags, the configuration and the run's folder. Flows out: the run in
that folder, a line an epoch, and whether there was anything left to train.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from pipelines.cluster import cause, connect
from pipelines.console import say
from pipelines.signals import heard
from pipelines.train.args import Args
from trainables.distributed import ALONE, STEP_SECONDS, Worker, join
from trainables.errors import CliptuneError
from trainables.files import read_jsonl
from trainables.training.loop import Interrupted
from trainables.training.selection import Row
from trainables.trials.crew import is_common
from trainables.trials.workbench import TrialSettings, Workbench


def train_in_group(job: dict[str, Any]) -> bool:
    """The training in workers of the cluster; whether there was anything left to do."""
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.tune.workers.division import take
    from pipelines.tune.workers.follow import follow

    connect(dashboard=False)
    args: Args = job["args"]
    workers = take(1, args.workers, args.gpus, args.wait)
    say(f"starting {args.workers} worker(s), {workers.each} each ...")
    folder = job["folder"]
    rows = len(read_jsonl(folder / "metrics.jsonl"))
    trainer = TorchTrainer(
        train_together,
        train_loop_config=job,
        torch_config=TorchConfig(timeout_s=STEP_SECONDS),
        scaling_config=workers.scaling,
        run_config=train.RunConfig(
            name="group",
            storage_path=str(folder / "ray"),
            failure_config=train.FailureConfig(max_failures=2, controller_failure_limit=1),
        ),
    )
    show = functools.partial(_show, epochs=job["config"].epochs, metric=args.metric)
    try:
        ended = follow(lambda: trainer.fit().return_value, folder, _settings(job).stop_file, show)
    except train.TrainingFailedError as error:
        raise CliptuneError(f"the workers failed: {cause(error)}") from error
    if ended is not None:
        raise ended
    return len(read_jsonl(folder / "metrics.jsonl")) > rows


def train_together(job: dict[str, Any]) -> BaseException | None:
    """The training in one of several workers. An interrupt, and what would end all of them again,
    are given back; any other error ends the group, which is then started anew."""
    from pipelines.tune.workers.groups import agreed_stop

    try:
        worker = join()
        _train(job, worker, lambda: nullcontext(agreed_stop(_settings(job).stop_file, worker)))
    except KeyboardInterrupt as stop:
        return stop
    except CliptuneError as error:
        if not is_common(error):
            raise
        return error
    return None


def train_here(job: dict[str, Any]) -> bool:
    """The training in this process; whether there was anything left to do."""
    return _train(job, ALONE, _asked_to_stop)


def _settings(job: dict[str, Any]) -> TrialSettings:
    args: Args = job["args"]
    return TrialSettings(
        *(args.features, job["folder"], args.metric),
        threads=0,
        draw=args.draw,
        retain=args.retain,
        measures=args.val,
    )


def _train(
    job: dict[str, Any],
    worker: Worker,
    listen: Callable[[], AbstractContextManager[Callable[[], bool]]],
) -> bool:
    """This worker's part. `listen`, once all is loaded, makes what says that it is to stop."""
    args: Args = job["args"]
    bench = Workbench(_settings(job))
    if args.retain and worker.rank == 0:  # else there is nothing to say it was retained of
        bench.baseline(job["config"].task)
    run = bench.run(job["config"], job["folder"], worker)
    for warning in run.warnings:
        say(f"warning: {warning}")
    for note in run.adapter.notes if worker.rank == 0 else ():
        say(note)
    if run.adapter.without_val and not args.val and worker.rank == 0:
        say(f"without val: {run.adapter.without_val}")
    if run.finished:
        return False
    try:
        with listen() as should_stop:
            while not run.finished:
                row = run.advance(should_stop)
                if worker.rank == 0:
                    _show(row, run.epochs, args.metric)
    except Interrupted:
        raise KeyboardInterrupt from None  # saved; the command line says how to go on
    return True


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM, remembered until the loop asks between two steps; a second one does not
    wait for the step."""
    seen: list[int] = []

    def hear(number: int, _: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    with heard(hear):
        yield lambda: bool(seen)


def _show(row: Row, epochs: int, metric: str) -> None:
    left = row["train/seconds"] * (epochs - row["epoch"])
    loss = f"loss {row['train/loss']:.4f} | " if "train/loss" in row else ""
    kept = f"val/retained {row['val/retained']:.4f} | " if "val/retained" in row else ""
    value = f"{metric} {row[metric]:.4f} | " if metric in row else ""
    say(
        f"epoch {row['epoch']:>3}/{epochs} | {loss}{value}{kept}"
        f"{row['train/seconds']:.1f} s an epoch, about {left:.0f} s left"
    )
