"""The machinery of the `encode` stage: shards in, a feature store out, by way of Ray Data.

Row groups of the shards are read and decoded by tasks, embedded by a pool of frozen towers, and
written by this process wherever they belong, so that Ray's order does not matter. Only train and
val are encoded: the test split stays sealed. Val has the clean view alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from tqdm import tqdm

from pipelines import console
from pipelines.cluster import connect
from pipelines.encode import Args
from pipelines.store_writer import Array, SplitWriter, locked
from trainables.backbone import Backbone, load_backbone
from trainables.errors import CliptuneError, ConfigError, DataError
from trainables.features import (
    FORMAT,
    TEXT_COLUMNS,
    decoder_versions,
    features_key,
    read_texts,
)
from trainables.files import now, read_json, sha256_file, write_json
from trainables.images import BadImage, decode
from trainables.preprocess import Preprocess, view_of
from trainables.shards import ShardSet

SPLITS = ("train", "val")
READ = 32  # images decoded at a time


class Unit(NamedTuple):
    """A row group of a shard."""

    file: str
    group: int
    split: str
    first: int  # row of its first image in the split


@dataclass(frozen=True)
class Resources:
    """How the cluster is divided between decoding and towers."""

    towers: int
    tower_cpus: float  # each
    tower_gpus: float
    threads: int  # of torch, each tower
    task_cpus: float

    @classmethod
    def plan(cls, workers: int | str, cpus: float, gpus: float) -> Resources:
        """Towers get half of the CPUs: were all taken, nothing would be left to decode for them.

        A task never asks for as much as a tower: Ray Data fuses two stages that ask for the same,
        and the tower's process would decode.
        """
        if cpus < 1:
            raise ConfigError(f"Ray must have at least 1 CPU, got {cpus:g}.")
        automatic = int(gpus) or max(1, int(cpus) // 4)
        towers = automatic if workers == "auto" else int(workers)
        share = cpus / 2 / towers
        return cls(
            towers=towers,
            tower_cpus=int(share)
            if share >= 1
            else round(share, 3),  # Ray wants whole ones above 1
            tower_gpus=min(1.0, gpus / towers),
            threads=max(1, int(cpus / towers)),
            task_cpus=0.9 * min(1.0, cpus / 2),
        )


class ReadAndDecode:
    """A row group's images as squares for the tower, a few at a time."""

    def __init__(self, preprocess: Preprocess, views: dict[str, int], data_seed: int) -> None:
        self.preprocess, self.views, self.data_seed = preprocess, views, data_seed

    def __call__(self, batch: dict[str, Array]) -> Iterator[dict[str, Array]]:
        """Units to `split`, `square` (row * V + view), `pixels` (n, 3, R, R), `error`."""
        torch.set_num_threads(1)
        for values in zip(*(batch[name].tolist() for name in Unit._fields), strict=True):
            yield from self._unit(Unit(*values))

    def _unit(self, unit: Unit) -> Iterator[dict[str, Array]]:
        row, views = unit.first, self.views[unit.split]
        with pq.ParquetFile(unit.file, pre_buffer=False) as file:
            parts = file.iter_batches(READ, row_groups=[unit.group], columns=["id", "image"])
            for part in parts:
                squares: list[Array] = []
                numbers: list[int] = []
                errors: list[str] = []
                for record in part.to_pylist():
                    pixels, error = self._squares(record, row, views)
                    squares += pixels
                    numbers += range(row * views, (row + 1) * views)
                    errors += [error] * views
                    row += 1
                yield {
                    "split": np.array([unit.split] * len(numbers)),
                    "square": np.array(numbers),
                    "pixels": np.stack(squares),
                    "error": np.array(errors),
                }

    def _squares(self, record: dict[str, Any], row: int, views: int) -> tuple[list[Array], str]:
        """All views of an image; one that does not decode is black, and says why."""
        try:
            image = decode(record["image"])
        except BadImage as error:
            size = self.preprocess.size
            return [np.zeros((3, size, size), np.uint8)] * views, f"`{record['id']}`: {error}"
        chosen = [None, *(view_of(self.data_seed, k, row) for k in range(views - 1))]
        return [self.preprocess.apply(image, view).numpy() for view in chosen], ""


class Tower:
    """A frozen image tower, loaded once a worker."""

    def __init__(self, name: str, revision: str | None, fingerprint: str, threads: int) -> None:
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.backbone = load_backbone(name, revision, device)
        if self.backbone.fingerprint != fingerprint:
            raise CliptuneError(f"`{name}` changed while it was being used.")

    @torch.no_grad()
    def __call__(self, batch: dict[str, Array], keep_pixels: bool) -> dict[str, Array]:
        pixels = torch.from_numpy(np.array(batch["pixels"]))
        result = {name: batch[name] for name in ("split", "square", "error")}
        result["image_embeds"] = self.backbone.embed_images(pixels).cpu().numpy()
        return result | ({"pixels": batch["pixels"]} if keep_pixels else {})


class Store:
    """The store being written: one writer a split, and what is still to come of each shard."""

    def __init__(self, args: Args, folder: Path, backbone: Backbone, shards: ShardSet) -> None:
        self.views = {"train": 1 + args.views, "val": 1}
        self.writers: dict[str, SplitWriter] = {}
        self.units: list[Unit] = []
        self.left: dict[tuple[str, int], int] = {}  # (split, first row of a shard): squares to come
        self.starts: dict[str, list[int]] = {split: [] for split in SPLITS}
        self.shards: dict[tuple[str, int], tuple[str, int]] = {}  # its hash and number of rows
        size = backbone.preprocess.size if args.pixels else None
        for split in SPLITS:
            texts = read_texts(backbone, shards.rows(split, TEXT_COLUMNS))
            self.writers[split] = SplitWriter(
                folder, split, texts, self.views[split], backbone.embed_dim, size
            )
            self._plan(split, shards)

    def _plan(self, split: str, shards: ShardSet) -> None:
        """List the row groups of the shards that no earlier run has finished."""
        finished = self.writers[split].finished()
        row = 0
        for shard in shards.manifest["shards"]:
            if shard["split"] != split:
                continue
            key = (split, row)
            self.starts[split].append(row)
            self.shards[key] = (shard["sha256"], shard["rows"])
            if (shard["sha256"], row) in finished:
                row += shard["rows"]
                continue
            self.left[key] = shard["rows"] * self.views[split]
            path = shards.folder / shard["file"]
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                self.units.append(Unit(str(path), group, split, row))
                row += metadata.row_group(group).num_rows

    def write(self, batch: dict[str, Array]) -> None:
        wrong = np.flatnonzero(batch["error"] != "")
        if len(wrong):
            raise DataError(
                f"image {batch['error'][wrong[0]]}. Shards hold only images that decode: "
                "run `cliptune shards` again."
            )
        for split in np.unique(batch["split"]).tolist():
            mine = batch["split"] == split
            values = {name: batch[name][mine] for name in self.writers[split].items}
            squares = batch["square"][mine]
            self.writers[split].write(squares, values)
            starts = np.searchsorted(self.starts[split], squares // self.views[split], "right") - 1
            for number, count in zip(*np.unique(starts, return_counts=True), strict=True):
                self._count((split, self.starts[split][number]), int(count))

    def _count(self, key: tuple[str, int], squares: int) -> None:
        self.left[key] -= squares
        if self.left[key] == 0:
            shard, rows = self.shards[key]
            self.writers[key[0]].finish_shard(shard, key[1], rows)

    def close(self) -> dict[str, Any]:
        return {split: writer.close() for split, writer in self.writers.items()}


def encode(args: Args) -> tuple[Path, bool]:
    """The store's folder, and whether this call had to write it."""
    shards = ShardSet.open(args.shards)
    for split in SPLITS:
        if not shards.splits.get(split, {}).get("images"):
            raise DataError(f"`{shards.folder}` must have images in `{split}`, got none.")
    backbone = load_backbone(args.backbone, args.revision)
    key = features_key(backbone, shards, args.views, args.data_seed, args.pixels)
    folder = args.out.absolute() / key
    with locked(folder):
        if _complete(folder):
            return folder, False
        store = Store(args, folder, backbone, shards)
        if store.units:
            _compute(args, store, backbone)
        splits = store.close()
        truncated = sum(split["truncated_captions"] for split in splits.values())
        made_with = {"name": backbone.name, "revision": backbone.revision}
        manifest = {
            **{"format": FORMAT, "key": key},
            **{"shards": str(shards.folder), "shards_sha256": shards.digest},
            "backbone": made_with | {"fingerprint": backbone.fingerprint},
            **{"preprocess": asdict(backbone.preprocess), "decoder": decoder_versions()},
            **{"views": args.views, "data_seed": args.data_seed, "pixels": args.pixels},
            **{"splits": splits, "truncated_captions": truncated, "created": now()},
        }
        write_json(folder / "manifest.json", manifest)
    if truncated:
        console.say(f"{truncated:,} captions were cut to {backbone.context_length} positions.")
    return folder, True


def _complete(folder: Path) -> bool:
    """Whether `folder` is finished and every byte is as written; a damaged store is not."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    for split, expected in read_json(manifest)["splits"].items():
        path = folder / f"{split}.safetensors"
        if not path.is_file() or sha256_file(path) != expected["sha256"]:
            console.say(f"{path} is missing or was altered: encoding again.")
            manifest.unlink()
            return False
    return True


def _compute(args: Args, store: Store, backbone: Backbone) -> None:
    connect()
    have = ray.cluster_resources()
    resources = Resources.plan(args.workers, have.get("CPU", 0), have.get("GPU", 0))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    units = [unit._asdict() for unit in store.units]
    embedded = (
        ray.data.from_items(units, override_num_blocks=len(units))
        .map_batches(
            ReadAndDecode(backbone.preprocess, store.views, args.data_seed).__call__,
            batch_size=1,
            num_cpus=resources.task_cpus,
        )
        .map_batches(
            Tower,
            fn_constructor_args=(
                *(backbone.name, backbone.revision, backbone.fingerprint),
                resources.threads,
            ),
            fn_kwargs={"keep_pixels": args.pixels},
            batch_size=args.batch_size,
            compute=ray.data.ActorPoolStrategy(size=resources.towers),
            num_cpus=resources.tower_cpus,
            num_gpus=resources.tower_gpus or None,
        )
    )
    total = sum(store.left.values())
    with tqdm(total=total, unit="img", unit_scale=True, desc="encode") as bar:
        for batch in embedded.iter_batches(batch_size=None, batch_format="numpy"):
            store.write(batch)
            bar.update(len(batch["square"]))
