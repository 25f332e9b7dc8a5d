"""The machinery of the `encode` stage.

Flows in: shards. Flows out: a feature store. This process writes each batch of the towers where it
belongs, so Ray's order does not matter. It notes the shards that are complete, so a killed run goes
on. Only train and val are encoded: test stays sealed.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from pipelines import console
from pipelines.encode.args import Args
from pipelines.encode.finished import complete, write_manifest
from pipelines.encode.precision import settle
from pipelines.encode.towers import Job, Step, Unit, embed_units
from pipelines.encode.writer import SplitWriter, tell_captions
from pipelines.hold import hold
from trainables.data.shards import ShardSet
from trainables.data.store import FORMAT, MANIFEST, read_manifest
from trainables.errors import CliptuneError, DataError
from trainables.features.frames import Frames
from trainables.features.manifest import features_key
from trainables.features.texts import TEXT_COLUMNS, read_texts
from trainables.files import now, write_hashed
from trainables.media.preprocess import decoder_versions
from trainables.models.backbone import Backbone
from trainables.models.cleaning import versions
from trainables.models.load import load_backbone

SPLITS = ("train", "val")


class Store:
    """The store being written: one writer a split, and the rows of each shard that are still
    missing."""

    def __init__(self, args: Args, folder: Path, backbone: Backbone, shards: ShardSet) -> None:
        self.writers: dict[str, SplitWriter] = {}
        self.units: list[Unit] = []
        self.left: dict[tuple[str, int], int] = {}  # (split, first row of a shard): rows to come
        self.starts: dict[str, list[int]] = {split: [] for split in SPLITS}
        self.shards: dict[tuple[str, int], tuple[str, int]] = {}  # its hash and number of rows
        size = backbone.preprocess.size if args.pixels else None
        for split in SPLITS:
            texts = read_texts(backbone, shards.rows(split, TEXT_COLUMNS))
            widths = (backbone.embed_dim, args.frames, size)
            self.writers[split] = SplitWriter(folder, split, texts, *widths)
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
            self.left[key] = shard["rows"]
            path = shards.folder / shard["file"]
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                self.units.append(Unit(str(path), group, split, row))
                row += metadata.row_group(group).num_rows

    def fill(self, args: Args, backbone: Backbone) -> None:
        """Compute the rows that are missing."""
        if not self.units:
            return
        done, missing = self._done(), sum(self.left.values())
        frames = Frames(args.frames, args.sampling)
        asked = (args.workers, args.gpus, args.wait)
        job = Job(backbone, missing, args.pixels, args.batch_size, *asked, frames)
        with tqdm(total=done + missing, initial=done, unit="img", desc="encode") as bar:
            for step in embed_units(self.units, job):
                self.write(step)
                bar.update(len(step["row"]))
        if any(self.left.values()):
            raise CliptuneError(f"{sum(self.left.values())} images got lost: run this again.")

    def _done(self) -> int:
        """How many images were there already."""
        total = sum(len(w.texts.ids) for w in self.writers.values())
        return total - sum(self.left.values())

    def write(self, step: Step) -> None:
        if step["error"]:
            raise DataError(
                f"image {step['error']}. Shards hold only images that decode: "
                "run `cliptune shards` again."
            )
        split, rows = step["split"], step["row"]
        self.writers[split].write(rows, {name: step[name] for name in self.writers[split].items})
        starts = np.searchsorted(self.starts[split], rows, "right") - 1
        for number, count in zip(*np.unique(starts, return_counts=True), strict=True):
            self._count((split, self.starts[split][number]), int(count))

    def _count(self, key: tuple[str, int], rows: int) -> None:
        self.left[key] -= rows
        if self.left[key] == 0:
            shard, rows = self.shards[key]
            self.writers[key[0]].finish_shard(shard, key[1], rows)

    def close(self) -> dict[str, Any]:
        return {split: writer.close() for split, writer in self.writers.items()}


def _set_budget(folder: Path, args: Args) -> None:
    """Change the budget for hidden states, the one fact of a finished store that another call may
    change."""
    manifest, budget = read_manifest(folder), int(args.activations_gb * 1e9)
    if manifest["activations_bytes"] != budget:
        write_hashed(folder / MANIFEST, manifest | {"activations_bytes": budget})


def encode(args: Args) -> tuple[Path, bool]:
    """The store's folder, and whether this call had to write it."""
    assert args.shards is not None
    shards = ShardSet.open(args.shards)
    for split in SPLITS:
        if not shards.splits.get(split, {}).get("images"):
            how = " `cliptune shards --split val-of-train` takes a tenth of train for it."
            raise DataError(
                f"`{shards.folder}` must have images in `{split}`, got none."
                + (how if split == "val" else "")
            )
    asked = (args.precision, args.workers, args.gpus, args.wait)
    backbone = load_backbone(
        args.backbone, args.revision, precision=settle(*asked), clean_text=args.clean_text
    )
    clips, frames = shards.notes.get("clips", 0), Frames(args.frames, args.sampling)
    if clips and not args.frames:
        console.say(
            f"warning: {clips:,} of the images are clips, and without `--frames` each is only its "
            "first frame: `--frames 8` sees eight."
        )
    key = features_key(backbone, shards, args.views, args.data_seed, args.pixels, frames)
    folder = args.out.absolute() / key
    with hold(folder):
        if complete(folder):
            _set_budget(folder, args)
            return folder, False
        (folder / MANIFEST).unlink(missing_ok=True)
        store = Store(args, folder, backbone, shards)
        store.fill(args, backbone)
        splits = store.close()
        truncated = sum(split["truncated_captions"] for split in splits.values())
        made_with = {"name": backbone.name, "revision": backbone.revision}
        manifest = {
            **{"format": FORMAT, "key": key},
            **{"shards": str(shards.folder), "shards_sha256": shards.digest},
            "backbone": made_with | {"fingerprint": backbone.fingerprint},
            **{"preprocess": asdict(backbone.preprocess), "decoder": decoder_versions()},
            **{"views": args.views, "data_seed": args.data_seed, "pixels": args.pixels},
            **({"frames": args.frames, "sampling": args.sampling} if args.frames else {}),
            **({"precision": backbone.precision} if backbone.precision != "fp32" else {}),
            **({"cleaning": cleaning} if (cleaning := versions(backbone.cleaning)) else {}),
            "activations_bytes": int(args.activations_gb * 1e9),
            **{"splits": splits, "truncated_captions": truncated, "created": now()},
        }
        write_manifest(folder, args, manifest)
    tell_captions(splits, backbone.context_length)
    return folder, True
