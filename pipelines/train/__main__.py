"""Train one adapter with given hyperparameters: its published recipe unless told otherwise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.capacity import check_gpus
from pipelines.cluster import check_here
from pipelines.console import done, nothing_to_do, say, word
from pipelines.hold import hold
from pipelines.train.args import Args
from trainables.data.store import find_store, read_manifest
from trainables.errors import CheckpointError, ConfigError, DataError
from trainables.files import read_json, write_hashed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainables.config import Task, TrainConfig


def run(args: Args) -> None:
    check_gpus(args.gpus, args.workers)
    args = dataclasses.replace(args, features=find_store(args.features).absolute())

    from pipelines.train.training import train_here, train_in_group
    from trainables.adapters.registry import check_towers  # torch, too late for a slip
    from trainables.features.few_shot import check_divided, check_draw, check_retain
    from trainables.models.given_texts import check_texts
    from trainables.training.selection import METRICS, check_metric

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
            ran = train_here(job) if here else train_in_group(job)
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
    from trainables.training.integrity import verify

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


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("train")
