"""The flags of `cliptune arena`, checked and made a plan.

Flows in: the flags, and the data that they name. Flows out: the plan, or what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.arena.args import Args
from pipelines.arena.plan import Plan, Source
from pipelines.draw.class_names import DEFAULT, shipped
from pipelines.tune.spaces import on_store, possible
from search_spaces.registry import SPACES
from trainables.adapters.registry import adapters_for, make_config
from trainables.data.shards import ShardSet
from trainables.data.store import read_manifest
from trainables.errors import CliptuneError
from trainables.features.manifest import towers_of


def plan_of(args: Args) -> Plan:
    """The plan that the flags ask for. Raises for everything that can be wrong with them."""
    data, words = _pairs("--data", args.data), _pairs("--words", args.words)
    if not data:
        raise CliptuneError("`--data` must name shards or a store as NAME=PATH, got none.")
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
    """The store of finished embeddings that `--data` names; None where it names shards."""
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
