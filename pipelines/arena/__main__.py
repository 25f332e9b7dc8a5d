"""Every few-shot adapter in one environment: same splits, same backbone, same budget, sealed test.

Flows in: shards of labelled images. Flows out: one table with everything tuned on val and measured
on test once, `arena.html`, and a folder for each cell that is a study like any other.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.arena.args import Args
from pipelines.capacity import check_gpus
from pipelines.console import done, say
from pipelines.hold import hold
from trainables.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.arena.plan import Plan


def run(args: Args) -> None:
    check_gpus(args.gpus)
    from pipelines.arena.flags import plan_of  # torch, too late for a slip

    folder = args.out.absolute()
    with hold(folder, "plan.json"):
        _compete(args, plan_of(args), folder)


def _compete(args: Args, plan: Plan, folder: Path) -> None:
    from pipelines.arena.arena_page import write_page
    from pipelines.arena.cells import FORMAT
    from pipelines.arena.plan import pending, store_of, write_plan
    from pipelines.typed import run_stage
    from trainables.files import read_hashed

    _draw(args, plan, folder)
    write_plan(folder, plan)
    places = [(source.shards, store_of(folder, source.name)) for source in plan.sources]
    unencoded = [(data, place) for data, place in places if not _linked(data, place)]
    _check_unchanged(plan, unencoded)
    revision = ("--revision", plan.revision) if plan.revision else ()
    for data, place in unencoded:
        run_stage(
            *("encode", "--shards", data, "--backbone", plan.backbone, *revision),
            *("--pixels", "--views", plan.views, "--out", place),
            *("--gpus", args.gpus, "--wait", args.wait, "--precision", args.precision),
        )
    _check_words(plan, folder)
    cells = list(plan.cells())
    todo = pending(folder, cells)
    say(f"\n{len(cells)} cells, {len(cells) - len(todo)} of them tuned already.")
    if todo and _tune(args, plan, folder, todo):
        raise KeyboardInterrupt("what is trained is saved; the same command goes on from here.")
    run_stage("evaluate", "--run", folder)
    wrote = write_page(read_hashed(folder / "arena.json", FORMAT), folder)
    done([folder / "arena.json", *wrote], f"open {wrote[0]} in a browser")


def _check_unchanged(plan: Plan, places: Sequence[tuple[str, Path]]) -> None:
    """Raise where the features of some data in its place, which cells may be tuned on, would now be
    others."""
    from trainables.data.shards import ShardSet
    from trainables.data.store import MANIFEST, read_manifest
    from trainables.media.preprocess import decoder_versions
    from trainables.models.model_folder import fingerprint, locate

    stores = [(data, path.parent) for data, place in places for path in place.glob(f"*/{MANIFEST}")]
    weights = fingerprint(locate(plan.backbone, plan.revision)) if stores else ""
    for data, store in stores:
        try:
            made = read_manifest(store)
        except DataError:  # it is damaged, and `encode` makes it anew
            continue
        for what, then, now in (
            (f"`{data}`", made["shards_sha256"], ShardSet.open(data).digest),
            (f"`{plan.backbone}`", made["backbone"]["fingerprint"], weights),
            ("what decodes images", made.get("decoder"), decoder_versions()),
        ):
            if then != now:
                raise DataError(
                    f"{what} changed since `{store}` was made: its cells could not be "
                    "compared. Put back what was there, or give another `--out`."
                )


def _linked(data: str, place: Path) -> bool:
    """Whether `data` is a store already; then `place` becomes a link to it."""
    from trainables.data.shards import ShardSet

    shards = ShardSet.open(data)
    if shards.embedded and not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(shards.folder.parent)
    return shards.embedded


def _draw(args: Args, plan: Plan, folder: Path) -> None:
    """Make every draw, before any other work, so that errors in the data show here."""
    from pipelines.arena.plan import draw_path
    from pipelines.draw.class_names import read_words
    from pipelines.draw.labelled import read_labelled
    from pipelines.draw.make import Task, make_draw
    from trainables.data.shards import ShardSet
    from trainables.features.few_shot import Part, read_draw, write_draw

    halves: dict[str, tuple[Part, ...]] = {"all": ("all",), "base": ("base", "new")}
    for source, tasks in itertools.groupby(plan.tasks(), lambda task: task[1]):
        shards = ShardSet.open(source.shards)
        words = read_words(source.words).fitted(shards.templates)
        if "test" not in shards.splits:
            raise DataError(f"`{shards.folder}` has no test split: there is nothing to measure on.")
        data = read_labelled(shards)
        for note in data.notes():
            say(note)
        for name, _, shots, seed, part in tasks:
            for half in halves[part]:
                path = draw_path(folder, name.removesuffix(part) + half)
                draw = make_draw(data, Task(source.name, shots, seed, half, words, args.fewer))
                if path.exists() and read_draw(path).key != draw.key:
                    raise DataError(f"`{path}` holds another draw: give another `--out`.")
                write_draw(path, draw)


def _check_words(plan: Plan, folder: Path) -> None:
    """Raise where a class name does not fit beside the tokens that a recipe adds to it."""
    from pipelines.arena.plan import draw_of
    from trainables.adapters.registry import check_room, make_config
    from trainables.models.load import load_backbone

    backbone = load_backbone(plan.backbone, plan.revision)
    configs = [make_config(name, {"task": "classification"}) for name in plan.adapters]
    check_room(configs, [draw_of(folder, name).classes for name, *_ in plan.tasks()], backbone)


def _tune(args: Args, plan: Plan, folder: Path, todo: list[Any]) -> bool:
    """Tune the cells that are left; whether it was interrupted."""
    from pipelines.cluster import connect, places_freed, quiet_tune

    quiet_tune()
    from ray import tune

    from pipelines.arena.progress import Progress
    from pipelines.arena.queue import CellQueue
    from pipelines.arena.tuning import Arena, CellTrial
    from pipelines.tune.samplers.from_disk import pausing
    from pipelines.tune.workers.division import take
    from pipelines.tune.workers.interrupt import Interrupt

    connect(dashboard=True)
    workers = take(args.concurrent, 1, args.gpus, args.wait)
    arena = Arena(plan, folder, workers.threads, workers.share)
    arena.stop_file.unlink(missing_ok=True)
    queue = CellQueue(todo)
    progress = Progress(folder, queue)
    interrupt = Interrupt(arena.stop_file, queue.stop, progress.standing)
    say(f"{len(todo)} cells of at most {plan.trials} trials: {workers}")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(CellTrial, arena=arena), workers.trial_resources),
        tune_config=tune.TuneConfig(
            search_alg=queue,
            num_samples=-1,  # the queue says when it is empty
            max_concurrent_trials=workers.concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"from-{int(time.time())}",
            storage_path=str(folder / "ray"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[progress],
            verbose=0,
        ),
    )
    with interrupt.listening(), places_freed(), pausing(queue):
        tuner.fit()
    arena.stop_file.unlink(missing_ok=True)
    return interrupt.seen


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("arena")
