"""The flags of `cliptune tune`, checked: all that can be wrong with them, before any work.

Flows in: the flags. Flows out: the search that they ask for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cluster import check_here
from pipelines.console import say
from pipelines.pages.numbers import plural
from pipelines.tune.first_checks import check_first
from pipelines.tune.samplers.points import with_hints
from pipelines.tune.samplers.samplers import check_sampler
from pipelines.tune.spaces import on_store, possible, read_file, searched, values_of
from pipelines.tune.study.finite import Tried
from pipelines.tune.study.limits import read_limits
from pipelines.tune.study.search import Search, Stopping, doubt_of, usual_grace
from search_spaces.registry import SPACES
from trainables.adapters.registry import (
    ADAPTERS,
    adapters_for,
    build,
    check_room,
    make_config,
    task_of,
)
from trainables.changes import CHANGING
from trainables.config import Task, Value, flatten, read_fields
from trainables.errors import CliptuneError, ConfigError
from trainables.features.features import backbone_of, open_features
from trainables.features.few_shot import Draw, check_divided, check_draw, check_folds, check_retain
from trainables.features.manifest import embedded, towers_of
from trainables.files import read_json
from trainables.models.given_texts import check_texts
from trainables.training.selection import METRICS, check_metric

if TYPE_CHECKING:
    from pipelines.tune.args import Args

FEW = 200  # val images: of fewer, the standard error of a share is above 3 points
FOLDS = 4


def check(args: Args) -> Search:
    """Everything that can be wrong with the flags, before any work."""
    check_first(args)
    file = read_file(args.space) if args.space else {}
    adapters = args.adapter or tuple(file) or ("coop" if args.draw else "soft_prompt", "lora")
    check_divided(args.features, args.draw)
    if adapters == ("auto",):
        check_texts(args.features, "classification" if args.draw else "retrieval")
        adapters = _possible(args.features, "classification" if args.draw else "retrieval")
    task = task_of([name for name in adapters if name in ADAPTERS], bool(args.draw))
    for name in adapters:
        make_config(name, {"task": task})
    metric = args.metric or METRICS[task][0]
    check_metric(metric, task)
    draw = check_draw(args.features, args.draw) if args.draw else None
    check_texts(args.features, task)
    check_retain(args.features, args.retain, draw, task)
    if args.retain and metric.endswith("log_likelihood"):
        raise CliptuneError(f"`--metric` must be a share beside `--retain`, got `{metric}`.")
    _check_fuse(args.fuse, adapters)
    folds = _folds(args, draw, adapters)
    fields = read_fields(args.set)
    for key in fields.keys() & {"epochs", "seed", "task"}:
        flag = {"task": "draw"}.get(key, key)
        raise CliptuneError(f"`--set` takes no `{key}`, got {fields[key]!r}: use `--{flag}`.")
    base = {"task": task, "epochs": args.epochs, **fields}
    fixed: dict[str, Value] = {}
    for name in adapters:
        config = flatten(make_config(name, base))
        fixed = {key: config[key] for key in fields}
    spaces = searched(adapters, base, file, args.search)
    every = {name: spaces.get(name, SPACES[name][task]) for name in adapters}
    spaces |= on_store(args.features, every, base)
    for one in values_of("precision", spaces, fixed):
        check_here(str(one), args.gpus)
    if draw is not None:
        configs = [make_config(name, base) for name in adapters]
        check_room(configs, [draw.classes], backbone_of(args.features))
    stopping = _stopping(args, task, adapters)
    search = Search(
        adapters,
        metric,
        args.trials or (0 if args.epochs_total or args.minutes else max(16, 4 * len(adapters))),
        args.epochs,
        args.seed,
        fixed,
        task,
        retains=bool(args.retain),
        epochs_total=args.epochs_total,
        minutes=args.minutes,
        stops=args.stop and not stopping.population,
        # A population is begun before any of it was measured: there is nothing to model.
        sampler="random" if stopping.population and args.sampler == "auto" else args.sampler,
        stopping=stopping,
        limits=read_limits(args.limit),
        spaces=spaces,
        folds=folds,
        doubt=0.0 if draw is None or args.retain else doubt_of(metric, _measured(draw, folds)),
    )
    check_sampler(search)
    _check_budget(search)
    for line in [line for name in adapters for line in search.left_out(name)]:
        say(line)
    points = Tried(search).left
    if points is not None and not 0 < search.trials <= points:
        say(f"the search ends after {plural(points, 'trial')}: no other configuration is there.")
    search = with_hints(search, args.out, args.portfolio, args.prior)
    if task == "captioning":
        _check_speakers(args.features, search)
    return search


def _possible(features: Path, task: Task) -> tuple[str, ...]:
    """All adapters of the task, except those that need a tower where there is none."""
    have, every = towers_of(features), adapters_for(task)
    found = [name for name in every if possible(have, name, SPACES[name][task], {"task": task})]
    if left := [name for name in every if name not in found]:
        lack = "finished embeddings" if embedded(features) else "no pixels in the features"
        say(f"{lack}: {', '.join(left)} need a tower and are left out.")
    return tuple(found)


def _stopping(args: Args, task: Task, adapters: Sequence[str]) -> Stopping:
    kind, brackets = args.scheduler, args.brackets
    if args.grace > args.epochs:
        raise ConfigError(f"`--grace` must be at most `--epochs` {args.epochs}, got {args.grace}.")
    grace = args.grace or (usual_grace(task, args.epochs) if brackets == 1 else 1)
    if kind in ("pbt", "pb2"):
        _check_population(args, adapters, task)
        return Stopping(kind, interval=args.interval)
    if args.retain:
        # A rung by one goal alone would drop the trials that are best in the other, and with two,
        # the front of few trials holds most of them.
        return Stopping("none")
    if kind == "hyperband":
        rungs = int(math.log(max(1, args.epochs / grace), args.eta) + 1e-9)
        return Stopping("asha", args.eta, grace, 1 + rungs)
    last = grace * args.eta ** (brackets - 1)
    if kind == "asha" and last > args.epochs:
        raise ConfigError(
            f"`--brackets` must be fewer where a trial has {args.epochs} epochs, got {brackets}: "
            f"the first rung of the last is epoch {last}."
        )
    return Stopping(kind, args.eta, grace, brackets)


def _folds(args: Args, draw: Draw | None, adapters: Sequence[str]) -> int:
    """The number of folds that was asked for; without one, `FOLDS` where val is too small to
    compare adapters on."""
    if draw is None:
        return 0
    if args.folds is not None:
        if args.folds:
            check_folds(args.folds, draw)
        return args.folds
    if (about := args.out / "study.json").exists():
        begun = int(read_json(about).get("folds", 0))
        if begun and args.fuse > 1:
            rule = f"at most 1 in `{args.out}`, a study with {begun} folds"
            raise ConfigError(f"`--fuse` must be {rule}, got {args.fuse}.")
        return begun
    count = min(FOLDS, draw.most_folds)
    alone = args.fuse > 1 or args.workers_per_trial > 1 or args.scheduler in ("pbt", "pb2")
    if len(adapters) == 1 or len(draw.val) >= FEW or alone or count < 2:
        return 0
    say(
        f"{plural(len(draw.val), 'val image')} are few to compare adapters on: each trial is also "
        f"trained without each of {count} parts of the shots and measured on it (`--folds "
        f"{count}`; `--folds 0` does not, and lets trials train together)."
    )
    return count


def _measured(draw: Draw, folds: int) -> int:
    """The number of images whose mean a val value is."""
    return len(draw.val) + (len(draw.train) if folds else 0)


def _check_population(args: Args, adapters: Sequence[str], task: Task) -> None:
    """Raise for flags that cannot go with members that wait for each other."""
    with_it = f"with `--scheduler {args.scheduler}`"
    for flag, value, default, rule in (
        ("minutes", args.minutes, 0, "0"),
        ("epochs-total", args.epochs_total, 0, "0"),
        ("limit", " ".join(args.limit), "", "empty"),
        ("retain", " ".join(map(str, args.retain)), "", "empty"),
    ):
        if value != default:
            raise ConfigError(f"`--{flag}` must be {rule} {with_it}, got {value}.")
    for name in adapters:
        if not {*CHANGING} & SPACES[name][task].keys():
            rule = f"must leave out `{name}` {with_it}: nothing of it can change while it trains"
            raise ConfigError(f"`--adapter` {rule}.")
    least = 2 * len(adapters)  # one of a kind takes over nobody's weights
    if args.trials is not None and args.trials < least:
        whose = with_it if len(adapters) == 1 else f"{with_it} of {len(adapters)} adapters"
        raise ConfigError(f"`--trials` must be at least {least} {whose}, got {args.trials}.")
    if "changes" in read_fields(args.set) | read_fields(args.search, "--search"):
        raise ConfigError(f"`changes` must not be given {with_it}, which finds them.")
    if args.interval > args.epochs:
        rule = f"at most `--epochs` {args.epochs}"
        raise ConfigError(f"`--interval` must be {rule}, got {args.interval}.")
    if args.fuse > 1:
        raise ConfigError(f"`--fuse` must be at most 1 {with_it}, got {args.fuse}.")
    if args.scheduler == "pb2" and find_spec("sklearn") is None:
        raise ConfigError("`--scheduler pb2` needs scikit-learn: pip install scikit-learn.")


def _check_budget(search: Search) -> None:
    """Raise where the budget does not hold the starting points of every adapter."""
    starts = {name: len(search.starts(name)) for name in search.adapters}
    need = sum(starts.values())
    words = ", ".join(f"{count} of {name}" for name, count in starts.items())
    if 0 < search.trials < need:
        rule = f"at least {need} for the published recipes ({words})"
        raise ConfigError(f"`--trials` must be {rule}, got {search.trials}.")
    if 0 < search.epochs_total < need * search.epochs:
        rule = f"at least {need * search.epochs} for the published recipes ({words}), which are"
        raise ConfigError(
            f"`--epochs-total` must be {rule} never stopped early, got {search.epochs_total}."
        )


def _check_speakers(features: Path, search: Search) -> None:
    """Raise for a language model that cannot speak after a published prefix."""

    backbone = backbone_of(features)
    train = open_features(features, "train", backbone)
    notes: dict[str, None] = {}
    for name in search.adapters:
        for recipe in search.recipes(name):
            values = {key: value for key, value in recipe.items() if key != "name"}
            config = make_config(name, {**values, "epochs": search.epochs, **search.fixed})
            notes |= dict.fromkeys(build(config, backbone, train).notes)
    for note in notes:
        say(note)


def _check_fuse(fuse: int, adapters: Sequence[str]) -> None:
    if alone := [name for name in adapters if not ADAPTERS[name].FUSES and fuse > 1]:
        rule = f"must be at most 1 with `{alone[0]}`, whose trials train alone"
        raise ConfigError(f"`--fuse` {rule}, got {fuse}.")
