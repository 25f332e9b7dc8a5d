"""Every few-shot adapter in one environment: same splits, same backbone, same budget, sealed test.

Flows in: shards of labelled images. Flows out: one table with everything tuned on val and measured
on test once, `arena.html`, and a folder for each cell that is a study like any other.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipelines.capacity import Gpus, check_gpus
from pipelines.console import done, say
from pipelines.hold import hold
from pipelines.ranges import MANY, Range, Wait, check_ranges
from trainables.errors import CliptuneError, DataError

if TYPE_CHECKING:
    from pipelines.arena.plan import Plan


@dataclass(frozen=True)
class Args:
    data: tuple[str, ...]
    """Labelled shards as NAME=DIR, e.g. `eurosat=shards/eurosat`; or one store that `encode
    --embeddings` wrote."""
    backbone: str = ""
    """A directory in Hugging Face layout, or a Hub id; a store of embeddings has its own."""
    revision: str | None = None
    """The commit (40 hex digits) of a Hub id."""
    out: Path = Path("runs/arena")
    """Folder of the arena. The same command goes on where it stopped."""
    words: tuple[str, ...] = ()
    """Class names and template as NAME=LIST, a shipped list or a JSON file; a data set that bears a
    shipped list's name has that one anyway."""
    adapter: tuple[str, ...] = ()
    """Adapters; all that classify where not given."""
    shots: Annotated[tuple[int, ...], Range(1)] = (16,)
    """Images a class to train on; val has at most 4."""
    seed: Annotated[tuple[int, ...], Range(0)] = (1, 2, 3)
    """Of the draws and of the training."""
    protocol: tuple[Literal["all", "base_to_new", "transfer", "shift"], ...] = (
        "all",
        "base_to_new",
    )
    """Trained and tested on all classes; on half of them, tested on both halves; tested on the
    other data sets: of other classes, or a shift with the same ones."""
    trials: Annotated[int, Range(1)] = 4
    """Budget of every cell: trials, the published recipe first."""
    seconds: Annotated[float, Range(0)] = 0.0
    """Budget of every cell in seconds of training and measuring; 0: no such limit."""
    epochs: Annotated[int, Range(0)] = 0
    """The most epochs of any trial; 0: as many as each recipe has."""
    views: Annotated[int, Range(0)] = 0
    """Augmented views of each training image, encoded once for all."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the frozen towers compute in; auto: bf16 on GPUs that have it, else fp32."""
    fewer: bool = False
    """Where a class has fewer images than shots, take what there is."""
    concurrent: Annotated[int, Range(0, MANY)] = 0
    """Cells at once; 0: one a GPU, or a CPU."""
    gpus: Gpus = "auto"
    """GPUs of a cell and of a tower that encodes; a fraction packs several on a card. auto: 1 where
    the cluster has GPUs or its autoscaler can start nodes with them, else 0."""
    wait: Wait = 10.0
    """Minutes to wait for room for the first cell, where nodes have to be started or are busy."""
    portfolio: bool = True
    """After its recipe, a cell tries shipped points that were good on other data."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    check_gpus(args.gpus)
    folder = args.out.absolute()
    with hold(folder, "plan.json"):
        _compete(args, _plan(args), folder)


def _plan(args: Args) -> Plan:
    """What the flags ask for; all that can be wrong with them."""
    from pipelines.arena.plan import Plan, Source
    from pipelines.draw.class_names import DEFAULT, shipped
    from pipelines.tune.spaces import on_store, possible
    from search_spaces.registry import SPACES
    from trainables.adapters.registry import adapters_for, make_config
    from trainables.data.store import read_manifest
    from trainables.features.manifest import towers_of

    data, words = _pairs("--data", args.data), _pairs("--words", args.words)
    if unknown_names := words.keys() - data.keys():
        raise CliptuneError(f"`--words` names `{min(unknown_names)}`, which `--data` does not.")
    store = _store(args, list(data.values()))
    adapters = args.adapter or tuple(adapters_for("classification"))
    task: Mapping[str, Any] = {"task": "classification"}
    for name in adapters:
        make_config(name, task)
    if store is not None:
        spaces = {name: SPACES[name]["classification"] for name in adapters}
        if not args.adapter:
            have = towers_of(store)
            adapters = tuple(n for n in adapters if possible(have, n, spaces[n], task))
        on_store(store, {name: spaces[name] for name in adapters}, task)  # or a `ConfigError`
    for flag, values in (
        *(("--adapter", adapters), ("--shots", args.shots), ("--seed", args.seed)),
        ("--protocol", args.protocol),
    ):
        if not values or len(set(values)) < len(values):
            raise CliptuneError(f"`{flag}` must name each of its values once, got {list(values)}.")
    sources = []
    for name, shards in data.items():
        own = words.get(name, name if name in shipped() else DEFAULT)
        sources.append(Source(name, str(Path(shards).absolute()), own))
    here = Path(args.backbone)
    backbone, revision = str(here.absolute()) if here.is_dir() else args.backbone, args.revision
    if store is not None:
        made_with = read_manifest(store)["backbone"]
        backbone, revision = made_with["name"], made_with["revision"]
    return Plan(
        sources=tuple(sources),
        backbone=backbone,
        revision=revision,
        adapters=adapters,
        shots=args.shots,
        seeds=args.seed,
        protocols=args.protocol,
        trials=args.trials,
        seconds=args.seconds,
        epochs=args.epochs,
        views=args.views,
        precision=args.precision,
        portfolio=args.portfolio,
    )


def _store(args: Args, data: list[str]) -> Path | None:
    """The store of finished embeddings that is the data, where it is one."""
    from trainables.data.shards import ShardSet

    shards = [ShardSet.open(folder) for folder in data]
    stores = [one.folder.parent for one in shards if one.embedded]
    if not stores:
        if not args.backbone:
            raise CliptuneError("`--backbone` must name the model that shards are encoded with.")
        return None
    if len(data) > 1:
        raise CliptuneError(
            f"`--data` must be one store where it is of finished embeddings, got {len(data)}: each "
            "has texts of its own."
        )
    for flag, value in (("backbone", args.backbone), ("views", args.views)):
        if value:
            raise CliptuneError(
                f"`--{flag}` must be left out with a store of finished embeddings, got {value}."
            )
    return stores[0]


def _pairs(flag: str, words: Iterable[str]) -> dict[str, str]:
    """`["eurosat=shards/eurosat", ...]` by name."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value) or name in pairs or "/" in name or name in (".", ".."):
            raise CliptuneError(f"`{flag}` takes each NAME=VALUE once, got {word!r}.")
        pairs[name] = value
    return pairs


def _compete(args: Args, plan: Plan, folder: Path) -> None:
    from pipelines.arena.arena_page import write_page
    from pipelines.arena.cells import FORMAT
    from pipelines.arena.plan import pending, store_of, write_plan
    from pipelines.typed import run_stage
    from trainables.files import read_hashed

    _draw(args, plan, folder)
    write_plan(folder, plan)
    for source in plan.sources:
        place = store_of(folder, source.name)
        if _linked(source.shards, place):
            continue
        _check_unchanged(plan, source.shards, place)
        revision = ("--revision", plan.revision) if plan.revision else ()
        run_stage(
            *("encode", "--shards", source.shards, "--backbone", plan.backbone, *revision),
            *("--pixels", "--views", plan.views, "--out", place),
            *("--gpus", args.gpus, "--wait", args.wait, "--precision", args.precision),
        )
    _check_words(plan, folder)
    cells = list(plan.cells())
    todo = pending(folder, cells)
    say(f"\n{len(cells)} cells, {len(cells) - len(todo)} of them tuned already.")
    if todo and _tune(args, plan, folder, todo):
        say("interrupted: what is trained is saved; the same command goes on from here.")
        os._exit(130)
    run_stage("evaluate", "--run", folder)
    wrote = write_page(read_hashed(folder / "arena.json", FORMAT), folder)
    done([folder / "arena.json", *wrote], f"open {wrote[0]} in a browser")


def _check_unchanged(plan: Plan, data: str, place: Path) -> None:
    """Raise where the features in `place`, which cells may be tuned on, would now be others."""
    from trainables.data.shards import ShardSet
    from trainables.data.store import MANIFEST, read_manifest
    from trainables.media.preprocess import decoder_versions
    from trainables.models.model_folder import fingerprint, locate

    for path in place.glob(f"*/{MANIFEST}"):
        try:
            made = read_manifest(path.parent)
        except DataError:  # it is damaged, and `encode` makes it anew
            continue
        weights = fingerprint(locate(plan.backbone, plan.revision))
        for what, then, now in (
            (f"`{data}`", made["shards_sha256"], ShardSet.open(data).digest),
            (f"`{plan.backbone}`", made["backbone"]["fingerprint"], weights),
            ("what decodes images", made.get("decoder"), decoder_versions()),
        ):
            if then != now:
                raise DataError(
                    f"{what} changed since `{path.parent}` was made: its cells could not be "
                    "compared. Put back what was there, or give another `--out`."
                )


def _linked(data: str, place: Path) -> bool:
    """Whether `data` is a store already, to which `place` then leads."""
    from trainables.data.shards import ShardSet

    shards = ShardSet.open(data)
    if shards.embedded and not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(shards.folder.parent)
    return shards.embedded


def _draw(args: Args, plan: Plan, folder: Path) -> None:
    """Every draw, before any other work: what is wrong with the data shows here."""
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
    """Every class name fits beside what each recipe adds to it."""
    from pipelines.arena.plan import draw_of
    from trainables.adapters.registry import check_room, make_config
    from trainables.models.load import load_backbone

    backbone = load_backbone(plan.backbone, plan.revision)
    configs = [make_config(name, {"task": "classification"}) for name in plan.adapters]
    check_room(configs, [draw_of(folder, name).classes for name, *_ in plan.tasks()], backbone)


def _tune(args: Args, plan: Plan, folder: Path, todo: list[Any]) -> bool:
    """Tune the cells that are left; whether it was interrupted."""
    from pipelines.cluster import connect, quiet_tune

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
    with interrupt, pausing(queue):
        tuner.fit()
    arena.stop_file.unlink(missing_ok=True)
    return interrupt.seen


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("arena")
