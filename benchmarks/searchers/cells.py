"""All surfaces of the benchmark, from the data on: `python -m benchmarks.searchers.cells`.

Flows in: a folder with EuroSAT, Oxford Pets and Flickr8k (parts of them will do) and a small CLIP;
the demo draws its own. Flows out: shards, features and draws in a work folder, and from them one
Parquet file for each data set and adapter. What is there already is not made again.

Trials are to cost seconds: of captioned data sets 96 images are trained on, and in val and test
an image has one caption.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import tyro

from benchmarks.searchers.record import Args, load, record
from pipelines.demo.__main__ import BACKBONE
from pipelines.demo.drawings import draw, draw_classes
from pipelines.typed import run_stage
from trainables.data.store import find_store
from trainables.files import read_json

HEADS = ("linear_probe", "clip_adapter", "tip_adapter", "projection", "coop")
RETRIEVERS = ("zero_shot", "projection", "soft_prompt", "lora")
SIZES = {"train": 96, "val": 150, "test": 200}  # images with captions


@dataclass(frozen=True)
class Options:
    data: Path = Path("../shared/data")
    """Where the data sets are."""
    work: Path = Path("runs/searchers")
    """For shards, features and draws."""
    out: Path = Path("benchmarks/searchers/surfaces")
    """The folder of the Parquet files."""
    only: tuple[str, ...] = ()
    """Of the surfaces' names (`eurosat-16-1.coop`), those to record, in this order; else all."""
    count: int = 200
    """Configurations of each beside the published recipes."""


def clip(options: Options) -> Path:
    return options.data / "clip-flickr8k"


def encoded(options: Options, name: str, source: Path, backbone: Path, *more: object) -> Path:
    """The folder with the shards and features of a source."""
    folder = options.work / name
    if not (folder / "features").exists():
        run_stage("shards", "--source", source, "--out", folder / "shards", *more)
        run_stage(
            *("encode", "--shards", folder / "shards", "--backbone", backbone),
            *("--out", folder / "features", "--precision", "fp32"),
        )
    return folder


def drawn(folder: Path, seed: int, words: str) -> Path:
    """A draw of 16 images a class."""
    path = folder / f"{seed}.json"
    if not path.exists():
        run_stage(
            *("draw", "--shards", folder / "shards", "--shots", 16, "--seed", seed),
            *("--words", words, "--out", path),
        )
    return path


def few(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`SIZES` images of Karpathy's layout, drawn."""
    chance, kept = random.Random(0), []
    for split, size in SIZES.items():
        for image in chance.sample([one for one in entries if one["split"] == split], size):
            captions = image["sentences"] if split == "train" else image["sentences"][:1]
            kept.append(image | {"sentences": captions})
    return kept


def subset(options: Options, name: str, source: Path, seen: frozenset[str]) -> Path:
    """A JSON file of `few` images of a source that the backbone was not trained on."""
    path = options.work / f"{name}.json"
    if not path.exists():
        entries = [one for one in read_json(source)["images"] if one["filename"] not in seen]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": few(entries)}))
    return path


def eurosat(options: Options, seed: int) -> tuple[Path, Path | None]:
    source = options.data / "eurosat" / "split_zhou_EuroSAT.json"
    folder = encoded(options, "eurosat", source, clip(options))
    return folder, drawn(folder, seed, "eurosat")


def pets(options: Options, seed: int) -> tuple[Path, Path | None]:
    source = options.data / "oxford_pets_5" / "split_zhou_OxfordPets.json"
    folder = encoded(options, "pets", source, clip(options))
    return folder, drawn(folder, seed, "oxford_pets")


def colours(options: Options, seed: int) -> tuple[Path, Path | None]:
    """The demo's classes, in the style that its CLIP has not seen."""
    pictures = options.work / "colours-pictures"
    if not (pictures / "split_zhou_colours.json").exists():
        draw_classes(pictures, "shifted", train=32, val=8, test=40)
    folder = encoded(options, "colours", pictures / "split_zhou_colours.json", BACKBONE)
    return folder, drawn(folder, seed, "default")


def flickr(options: Options, seed: int) -> tuple[Path, Path | None]:
    del seed
    seen = frozenset((clip(options) / "seen_images.txt").read_text().split())
    whole = options.data / "flickr8k" / "dataset_flickr8k.json"
    source = subset(options, "flickr8k", whole, seen)
    images = ("--images", options.data / "flickr8k" / "images")
    return encoded(options, "flickr8k", source, clip(options), *images), None


def scenes(options: Options, seed: int) -> tuple[Path, Path | None]:
    """The demo's scenes."""
    del seed
    pictures = options.work / "scenes-pictures"
    if not (pictures / "dataset.json").exists():
        draw(pictures, "shifted", **SIZES)
    source = subset(options, "scenes", pictures / "dataset.json", frozenset())
    images = ("--images", pictures / "images")
    return encoded(options, "scenes", source, BACKBONE, *images), None


# By name: what prepares it (shards, features, perhaps a draw), the draw's seed, its adapters and
# their epochs.
Prepare = Callable[[Options, int], tuple[Path, Path | None]]
DATA: dict[str, tuple[Prepare, int, tuple[str, ...], int]] = {
    **{f"eurosat-16-{seed}": (eurosat, seed, HEADS, 9) for seed in (1, 2, 3)},
    **{f"pets-16-{seed}": (pets, seed, HEADS, 9) for seed in (1, 2)},
    "colours-16-1": (colours, 1, HEADS, 9),
    "flickr8k": (flickr, 0, RETRIEVERS, 6),
    "scenes": (scenes, 0, RETRIEVERS, 6),
}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    every = [f"{name}.{adapter}" for name, about in DATA.items() for adapter in about[2]]
    for surface in options.only or every:
        if (options.out / f"{surface}.parquet").exists():
            continue
        name, adapter = surface.rsplit(".", 1)
        prepare, seed, _, epochs = DATA[name]
        folder, taken = prepare(options, seed)
        features, shards = find_store(folder / "features"), folder / "shards"
        more = {"count": options.count, "epochs": epochs}
        args = Args(features, shards, adapter, name, taken, **more, out=options.out)
        print(record(args, load(args)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
