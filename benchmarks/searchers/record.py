"""Record a surface: the learning curves of random configurations of one adapter on one data set.

    python -m benchmarks.searchers.record --features features --draw draws/eurosat-16-1.json \
        --adapter linear_probe --name eurosat-16-1 --count 240 --out benchmarks/searchers/surfaces

Flows in: a feature store and its shards, and perhaps a draw. Flows out: one Parquet file, a row a
configuration: its searched fields, and after each epoch what decides, on val and on test. The test
split is opened here, since regret on it is what a searcher is judged by; no searcher ever sees it.

Each configuration is trained for the whole schedule, in one thread, and none is stopped. A killed
recording goes on with the group of configurations that it was at.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from optuna.distributions import CategoricalDistribution, distribution_to_json

from benchmarks.searchers.curves import KEPT, Data, baseline, train
from pipelines.runs.provenance import hardware, versions
from pipelines.tune.samplers.searcher import suggest
from pipelines.tune.study.search import Search
from trainables.config import Task
from trainables.data.shards import Seal, ShardSet
from trainables.data.store import find_store
from trainables.features.features import backbone_of, embed_split, open_features
from trainables.features.few_shot import read_draw
from trainables.files import append_jsonl, now, read_jsonl
from trainables.hardware import default_device
from trainables.training.selection import METRICS
from trainables.trials.stacked import shape_of
from trainables.trials.workbench import config_of


@dataclass(frozen=True)
class Args:
    features: Path
    """A feature store."""
    shards: Path
    """The shards that it was made of."""
    adapter: str
    """Whose default space is recorded."""
    name: str
    """Of the data set, as it stands in the file's name."""
    draw: Path | None = None
    """A draw: classify its images."""
    count: int = 240
    """Configurations beside the published recipes."""
    epochs: int = 9
    """Of each."""
    width: int = 8
    """Configurations of one shape trained together, where the adapter fuses."""
    seed: int = 0
    """Of the configurations."""
    out: Path = Path("benchmarks/searchers/surfaces")
    """The folder of the Parquet file."""


def load(args: Args) -> Data:
    store = find_store(args.features)
    backbone = backbone_of(store, default_device())
    train, val = (open_features(store, split, backbone) for split in ("train", "val"))
    shards, seal = ShardSet.open(args.shards), Seal("a surface for benchmarks")
    test = embed_split(backbone, shards, "test", seal=seal)
    if args.draw is None:
        val, test = val.one_row_an_image(), test.one_row_an_image()
        return Data(backbone, train, val, test, "retrieval")
    draw = read_draw(args.draw)
    test = draw.among(test, shards.rows("test", ["id", "label"], seal))
    return Data(backbone, draw.of(train, "train"), draw.of(val, "val"), test, "classification")


def configurations(args: Args, task: Task) -> tuple[Search, list[dict[str, Any]]]:
    """The recipes, then random ones; of a space that has no more points than asked for, all."""
    metric = METRICS[task][0]
    search = Search((args.adapter,), metric, 1, args.epochs, args.seed, {}, task)
    space = search.searched(args.adapter)
    found = [dict(start.values) for start in search.starts(args.adapter)]
    choices = [d.choices for d in space.values() if isinstance(d, CategoricalDistribution)]
    if len(choices) == len(space) and math.prod(map(len, choices)) <= args.count:
        every = [dict(zip(space, values, strict=True)) for values in itertools.product(*choices)]
        return search, found + [one for one in every if one not in found]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=args.seed))
    for _ in range(args.count):
        trial = study.ask()
        found.append({name: suggest(trial, name, one) for name, one in space.items()})
    return search, found


def groups(configs: Sequence[dict[str, Any]], width: int) -> Iterator[list[int]]:
    """The places of those that train together: of one shape, `width` at most."""
    by_shape: dict[str, list[int]] = {}
    for place, values in enumerate(configs):
        by_shape.setdefault(json.dumps(shape_of(config_of(values)), default=str), []).append(place)
    for places in by_shape.values():
        yield from (places[n : n + width] for n in range(0, len(places), width))


def record(args: Args, data: Data) -> Path:
    """Write the surface, if it is not there."""
    path = args.out / f"{args.name}.{args.adapter}.parquet"
    if path.exists():
        return path
    args.out.mkdir(parents=True, exist_ok=True)
    search, found = configurations(args, data.task)
    common = {"name": args.adapter, "task": data.task, "epochs": args.epochs, "seed": args.seed}
    common |= {"patience": 0}  # some recipes stop by it
    configs = [common | values for values in found]
    partial = path.with_suffix(".jsonl")  # what is recorded so far
    rows = {row["place"]: row for row in read_jsonl(partial)}
    started, before = time.monotonic(), len(rows)
    for places in groups(configs, args.width):
        if all(place in rows for place in places):
            continue
        curves = train(data, [configs[n] for n in places])
        told = [{"place": n} | one for n, one in zip(places, curves, strict=True)]
        append_jsonl(partial, told)
        rows |= {row["place"]: row for row in told}
        left = (len(configs) - len(rows)) * (time.monotonic() - started) / (len(rows) - before)
        print(f"{path.name}: {len(rows)} of {len(configs)}, {left:.0f} s left", flush=True)
    starts = len(search.starts(args.adapter))
    table = [
        {"start": n < starts, "config": json.dumps(found[n]), **rows[n]} for n in range(len(found))
    ]
    write(path, table, about(args, data, search))
    partial.unlink()
    return path


def write(path: Path, table: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """A row a configuration; curves in single precision. `path` is then there, and whole."""
    curves = {f"{split}/{name}" for split in ("val", "test") for name in KEPT[about["task"]]}
    fields = {"start": pa.bool_(), "config": pa.string(), "seconds": pa.float32()}
    fields |= {"parameters": pa.int64(), "failed": pa.string()}
    fields |= {name: pa.list_(pa.float32()) for name in sorted(curves)}
    schema = pa.schema(fields, {"about": json.dumps(about)})
    columns = [name for name in schema.names if pa.types.is_list(schema.field(name).type)]
    rows = [
        {name: row.get(name, [] if name in columns else None) for name in fields} for row in table
    ]
    new = path.with_suffix(".new")
    pq.write_table(pa.Table.from_pylist(rows, schema), new, compression="zstd")
    new.replace(path)


def about(args: Args, data: Data, search: Search) -> dict[str, Any]:
    """Where the numbers are from."""
    space = search.searched(args.adapter)
    return {
        "data": args.name,
        "adapter": args.adapter,
        "task": data.task,
        "metric": search.metric,
        "epochs": args.epochs,
        "seed": args.seed,
        "space": {name: distribution_to_json(one) for name, one in space.items()},
        "images": {
            split: len(part.ids)
            for split, part in (("train", data.train), ("val", data.val), ("test", data.test))
        },
        "baseline": baseline(data),
        "backbone": {"name": Path(data.backbone.name).name, "key": data.backbone.fingerprint},
        "command": command(args),
        "created": now(),
        "versions": versions(),
        "hardware": hardware(),
    }


def command(args: Args) -> str:
    """What makes the file again, with the names alone of the files that go in."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    words = [f"--{name} {value.name if isinstance(value, Path) else value}"
             for name, value in given.items() if name != "out"]  # fmt: skip
    return " ".join(["python -m benchmarks.searchers.record", *words])


def main(args: Args) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(record(args, load(args)))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
