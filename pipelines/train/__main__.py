"""Train one adapter with given hyperparameters: its published recipe unless told otherwise."""

from __future__ import annotations

import dataclasses
import functools
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pipelines.capacity import Gpus, check_gpus
from pipelines.cluster import check_here
from pipelines.console import done, nothing_to_do, say, word
from pipelines.hold import hold
from pipelines.ranges import MANY, Range, Wait, check_ranges
from trainables.data.store import find_store, read_manifest
from trainables.errors import CheckpointError, CliptuneError, ConfigError, DataError
from trainables.files import read_json, read_jsonl, write_hashed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainables.config import Task, TrainConfig
    from trainables.distributed import Worker
    from trainables.training.loop import Row
    from trainables.trials.workbench import TrialSettings


@dataclass(frozen=True)
class Args:
    features: Path
    """A feature store written by `cliptune encode`, or a folder with one in it."""
    out: Path
    """Folder of the run. The same command in the same folder goes on where it stopped."""
    adapter: str = ""
    """Adapter to train. Default: soft_prompt, or the schedule's."""
    set: tuple[str, ...] = field(default_factory=tuple)
    """Hyperparameters, as `optim.lr=1e-3 adapter.n_ctx=8`."""
    draw: Path | None = None
    """A draw written by `cliptune draw`: classify its images instead of retrieving captions."""
    metric: str = ""
    """Decides which epoch is best and when patience ends. Default: val/t2i_r1, val/cider_d of a
    captioner, or val/accuracy with a draw; the schedule's, where there is one."""
    workers: Annotated[int, Range(1, MANY)] = 1
    """Ray Train workers that train together (gradients averaged, negatives gathered)."""
    gpus: Gpus = "auto"
    """GPUs of a worker. auto: one worker trains in this process on what this machine has; several
    get 1 each where the cluster has GPUs or its autoscaler can start nodes with them, else 0."""
    wait: Wait = 10.0
    """Minutes to wait for room for all workers, where nodes have to be started or are busy."""
    retain: tuple[Path, ...] = ()
    """Draws of classes that training never sees (`cliptune draw --part new`): each epoch, and
    zero-shot, also measures its accuracy on their val images, `val/retained`."""
    schedule: Path | None = None
    """A schedule that `cliptune tune --scheduler pbt` wrote: its adapter and values, which change
    while training, instead of `--adapter` and `--set`."""
    val: bool = True
    """Measure on val after each epoch and keep the best one. `--no-val` opens no val at all, and
    keeps the last."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    check_gpus(args.gpus, args.workers)
    args = dataclasses.replace(args, features=find_store(args.features).absolute())

    from trainables.adapters.registry import check_towers  # torch, too late for a slip
    from trainables.features.few_shot import check_divided, check_draw, check_retain
    from trainables.models.given_texts import check_texts
    from trainables.training.loop import METRICS, check_metric

    config, place = _configure(args)
    task, asked = config.task, args
    args = dataclasses.replace(
        args,
        draw=args.draw and args.draw.absolute(),
        metric=args.metric or place.get("metric") or METRICS[task][0],
        retain=tuple(path.absolute() for path in args.retain),
    )
    check_metric(args.metric, task)
    if not args.val:
        _check_without_val(asked, config)
    check_towers(args.features, [config])
    check_divided(args.features, args.draw)
    check_texts(args.features, task)
    draw = check_draw(args.features, args.draw) if args.draw else None
    check_retain(args.features, args.retain, draw, task)
    check_here(config.precision, args.gpus)
    folder = args.out.absolute()
    job = {"args": args, "config": config, "folder": folder}
    with hold(folder, "run.json"):
        _claim(folder, args, task)
        here = args.workers == 1 and args.gpus == "auto"
        try:
            ran = train_here(job) if here else _train_in_group(job)
        except BaseException:
            if not any([*folder.glob("last*"), *folder.glob("best*")]):  # another run may have it
                for name in ("run.json", "config.json"):
                    (folder / name).unlink(missing_ok=True)
            raise
    then = f"cliptune evaluate --run {word(args.out)}"
    if ran:
        done([folder / "best", folder / "metrics.csv"], then)
    else:
        _check_best(folder)
        nothing_to_do(folder / "best", then)


def _check_best(folder: Path) -> None:
    """What a finished run is there for."""
    from trainables.training.checkpoint import verify

    try:
        verify(folder / "best")
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} Restore it, or remove `{folder}` and run the same command: it trains the "
            "same adapter again."
        ) from None


def _configure(args: Args) -> tuple[TrainConfig, Mapping[str, Any]]:
    """What is trained, and where its schedule, if it has one, was found."""
    from pipelines.tune.study.schedule import read_schedule
    from trainables.adapters.registry import ADAPTERS, make_config, task_of
    from trainables.config import read_fields
    from trainables.features.few_shot import read_draw

    if args.schedule is None:
        name = args.adapter or "soft_prompt"
        task = task_of([name] if name in ADAPTERS else [], bool(args.draw))
        return make_config(name, {"task": task, **read_fields(args.set)}), {}
    for flag, value in (("adapter", args.adapter), ("set", " ".join(args.set))):
        if value:
            raise ConfigError(f"`--{flag}` must be left to the schedule, got {value}.")
    schedule = read_schedule(args.schedule)
    if (schedule.config.task == "classification") != bool(args.draw):
        need = "needs" if args.draw is None else "takes no"
        raise ConfigError(f"`{args.schedule}` is for {schedule.config.task}: it {need} `--draw`.")
    here = {
        "features_key": read_manifest(args.features)["key"],
        "draw_key": args.draw and read_draw(args.draw).key,
    }
    if odd := [name for name, key in here.items() if key != schedule.place[name]]:
        say(f"warning: the schedule was found on another `{odd[0]}`: its run will not be this one.")
    return schedule.config, schedule.place


def _check_without_val(args: Args, config: TrainConfig) -> None:
    """What cannot be had without val is refused, and the rest of what it costs is said."""
    for flag, value in (("metric", args.metric), ("retain", " ".join(map(str, args.retain)))):
        if value:
            raise ConfigError(f"`--{flag}` must be left out with `--no-val`, got {value}.")
    if config.patience:
        raise ConfigError(
            f"`patience` must be 0 with `--no-val`, got {config.patience}: nothing says when to "
            "stop."
        )
    say(
        "without val: the last epoch is kept, good or not. No epoch is chosen, training does not "
        "stop early, and nothing is known of how good it is before `cliptune evaluate`."
    )


def _claim(folder: Path, args: Args, task: Task) -> None:
    """Write `run.json`, or check that this folder holds the same run."""
    from trainables.features.few_shot import about_draws

    wanted: dict[str, Any] = {
        "format": "cliptune-run-1",
        "features": str(args.features),
        "features_key": read_manifest(args.features)["key"],
        "task": task,
        "metric": args.metric,
        **about_draws(args.draw, args.retain),
        **({} if args.val else {"val": False}),
    }
    path = folder / "run.json"
    found = read_json(path) if path.exists() else wanted
    if not isinstance(found, dict):
        raise DataError(f"`{path}` must be a JSON object, got {found!r:.60}.")
    for name in ("features_key", "metric", "draw_key", "retain_keys", "share", "val"):
        if found.get(name) != wanted.get(name):
            raise DataError(
                f"`{folder}` holds another run: its `{name}` is {found.get(name)!r}, "
                f"this one's {wanted.get(name)!r}. Give another `--out`."
            )
    write_hashed(path, wanted)


def _train_in_group(job: dict[str, Any]) -> bool:
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.cluster import cause, connect
    from pipelines.tune.workers.division import take
    from pipelines.tune.workers.follow import follow
    from trainables.distributed import STEP_SECONDS

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
    from trainables.distributed import join
    from trainables.trials.crew import is_common

    try:
        worker = join()
        _train(job, worker, lambda: agreed_stop(_settings(job).stop_file, worker))
    except KeyboardInterrupt as stop:
        return stop
    except CliptuneError as error:
        if not is_common(error):
            raise
        return error
    return None


def train_here(job: dict[str, Any]) -> bool:
    """The training in this process; whether there was anything left to do."""
    from trainables.distributed import ALONE

    return _train(job, ALONE, lambda: Interrupts().came)


def _settings(job: dict[str, Any]) -> TrialSettings:
    from trainables.trials.workbench import TrialSettings

    args: Args = job["args"]
    return TrialSettings(
        *(args.features, job["folder"], args.metric),
        threads=0,
        draw=args.draw,
        retain=args.retain,
        measures=args.val,
    )


def _train(job: dict[str, Any], worker: Worker, listen: Callable[[], Callable[[], bool]]) -> bool:
    """This worker's part. `listen`, once all is loaded, makes what says that it is to stop."""
    from trainables.training.loop import Interrupted
    from trainables.trials.workbench import Workbench

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
    should_stop = listen()
    try:
        while not run.finished:
            row = run.advance(should_stop)
            if worker.rank == 0:
                _show(row, run.epochs, args.metric)
    except Interrupted:
        raise KeyboardInterrupt from None  # saved; the command line says how to go on
    return True


class Interrupts:
    """SIGINT and SIGTERM, remembered until the loop asks between two steps."""

    def __init__(self) -> None:
        self.seen = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)

    def _handle(self, *_: object) -> None:
        if self.seen:
            raise KeyboardInterrupt  # the second one does not wait for the step
        self.seen = True

    def came(self) -> bool:
        return self.seen


def _show(row: Row, epochs: int, metric: str) -> None:
    left = row["train/seconds"] * (epochs - row["epoch"])
    loss = f"loss {row['train/loss']:.4f} | " if "train/loss" in row else ""
    kept = f"val/retained {row['val/retained']:.4f} | " if "val/retained" in row else ""
    value = f"{metric} {row[metric]:.4f} | " if metric in row else ""
    say(
        f"epoch {row['epoch']:>3}/{epochs} | {loss}{value}{kept}"
        f"{row['train/seconds']:.1f} s an epoch, about {left:.0f} s left"
    )


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("train")
