"""Record a surface: the learning curves of random configurations of one adapter on one data set.

    python -m benchmarks.searchers.record --features features --draw draws/eurosat-16-1.json \
        --adapter linear_probe --name eurosat-16-1 --count 240 --out benchmarks/searchers/surfaces

Flows in: a feature store and its shards, and perhaps a draw. Flows out: one Parquet file, a row a
configuration: its searched fields, and after each epoch what decides, on val and on test. The test
split is opened here, since regret on it is what a searcher is judged by; no searcher ever sees it.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
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

from pipelines.searching.searcher import suggest
from pipelines.searching.study import Search
from trainables.backbone import Backbone
from trainables.config import Task
from trainables.draws import read_draw
from trainables.features import SplitFeatures, backbone_of, embed_split, find_store, open_features
from trainables.fused import Fleet, shape_of
from trainables.hardware import default_device
from trainables.loop import METRICS, Run, measure
from trainables.metrics.classification import calibrated_likelihood
from trainables.predict import score
from trainables.shards import Seal, ShardSet
from trainables.trial import config_of

KEPT: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "log_likelihood", "calibrated_likelihood"),
    "retrieval": ("t2i_r1", "t2i_mrr"),
    "captioning": ("cider_d",),
}


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


@dataclass(frozen=True)
class Data:
    backbone: Backbone
    train: SplitFeatures
    val: SplitFeatures
    test: SplitFeatures
    task: Task


def load(args: Args) -> Data:
    store = find_store(args.features)
    backbone = backbone_of(store, default_device())
    train, val = (open_features(store, split, backbone) for split in ("train", "val"))
    shards, seal = ShardSet.open(args.shards), Seal("a surface for benchmarks")
    test = embed_split(backbone, shards, "test", seal=seal)
    if args.draw is None:
        return Data(backbone, train, val, test, "retrieval")
    draw = read_draw(args.draw)
    test = draw.among(test, shards.rows("test", ["id", "label"], seal))
    return Data(backbone, draw.of(train, "train"), draw.of(val, "val"), test, "classification")


def configurations(args: Args, task: Task) -> tuple[Search, list[dict[str, Any]]]:
    """The recipes, then random ones."""
    metric = METRICS[task][0]
    search = Search((args.adapter,), metric, 1, args.epochs, args.seed, {}, task)
    space = search.searched(args.adapter)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=args.seed))
    found = [dict(start.values) for start in search.starts(args.adapter)]
    for _ in range(args.count):
        trial = study.ask()
        found.append({name: suggest(trial, name, one) for name, one in space.items()})
    return search, found


def measures(run: Run, data: Data) -> dict[str, float]:
    """What decides, on val and test."""
    found: dict[str, float] = {}
    for split, part in (("val", data.val), ("test", data.test)):
        values = measure(run.adapter, part)
        if part.labels is not None and part.classes is not None:
            scores = score(run.adapter, part, part.classes)
            if split == "val":
                _, scale = calibrated_likelihood(scores, part.labels)
            likelihood = -torch.nn.functional.cross_entropy(scale * scores.double(), part.labels)
            values["calibrated_likelihood"] = float(likelihood)
        found |= {f"{split}/{name}": values[name] for name in KEPT[data.task]}
    return found


def groups(configs: Sequence[dict[str, Any]], width: int) -> Iterator[list[int]]:
    """The places of those that train together: of one shape, `width` at most."""
    by_shape: dict[str, list[int]] = {}
    for place, values in enumerate(configs):
        by_shape.setdefault(json.dumps(shape_of(config_of(values)), default=str), []).append(place)
    for places in by_shape.values():
        yield from (places[n : n + width] for n in range(0, len(places), width))


def record(args: Args, data: Data) -> Path:
    path = args.out / f"{args.name}.{args.adapter}.parquet"
    if path.exists():
        return path
    search, found = configurations(args, data.task)
    common = {"name": args.adapter, "task": data.task, "epochs": args.epochs, "seed": args.seed}
    configs = [common | values for values in found]
    rows: dict[int, dict[str, Any]] = {}
    started = time.monotonic()
    for places in groups(configs, args.width):
        rows |= dict(zip(places, train(args, data, [configs[n] for n in places]), strict=True))
        rate = len(rows) / (time.monotonic() - started)
        left = (len(configs) - len(rows)) / rate
        print(f"{path.name}: {len(rows)} of {len(configs)}, {left:.0f} s left", flush=True)
    starts = len(configs) - args.count
    table = [
        {"start": n < starts, "config": json.dumps(found[n]), **rows[n]} for n in range(len(found))
    ]
    about = {
        "data": args.name,
        "adapter": args.adapter,
        "task": data.task,
        "metric": search.metric,
        "epochs": args.epochs,
        "images": {
            "train": len(data.train.ids),
            "val": len(data.val.ids),
            "test": len(data.test.ids),
        },
        "seconds": time.monotonic() - started,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "baseline": baseline(data),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    out = pa.Table.from_pylist(table).replace_schema_metadata({"about": json.dumps(about)})
    pq.write_table(out, path, compression="zstd")
    return path


def train(args: Args, data: Data, configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves of configurations that train together."""
    folder = Path(tempfile.mkdtemp())
    curves: list[dict[str, list[float]]] = [{} for _ in configs]
    started = time.monotonic()
    try:
        runs = [make(data, values, folder / str(n)) for n, values in enumerate(configs)]
        fused = len(runs) > 1 and bool(runs[0].trained) and runs[0].config.optim.kind == "adamw"
        fleet = Fleet(runs) if fused else None
        alive = dict(enumerate(runs))
        for _ in range(args.epochs):
            told = fleet.advance() if fleet else [run.advance() for run in alive.values()]
            for place, row in zip(list(alive), told, strict=True):
                if isinstance(row, Exception):
                    del alive[place]
                    continue
                for name, value in measures(alive[place], data).items():
                    curves[place].setdefault(name, []).append(value)
        seconds = (time.monotonic() - started) / len(runs)
        return [
            curve | {"seconds": seconds, "parameters": run.trainable_parameters}
            for curve, run in zip(curves, runs, strict=True)
        ]
    finally:
        shutil.rmtree(folder)


def make(data: Data, values: dict[str, Any], folder: Path) -> Run:
    config = config_of(values)
    metric = METRICS[data.task][0]
    return Run(config, data.backbone, data.train, data.val, folder, metric)


def baseline(data: Data) -> dict[str, float]:
    """Zero-shot, with its default words."""
    with tempfile.TemporaryDirectory() as folder:
        run = make(data, {"name": "zero_shot", "task": data.task}, Path(folder))
        run.advance()
        return measures(run, data)


def main(args: Args) -> None:
    torch.set_num_threads(1)
    print(record(args, load(args)))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
