"""Shards of a few labelled images, and stages in this process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.cli import stage_main
from trainables.data.shards import SCHEMA
from trainables.files import sha256_bytes, sha256_file, write_json

NAMES = ("ball", "boat", "cat", "tree")
COUNTS = {"train": 4, "val": 2, "test": 2}  # images a class


def picture(label: int, number: int) -> bytes:
    random = np.random.default_rng([label, number])
    pixels = random.integers(0, 80, (32, 32, 3), dtype=np.uint8)
    pixels[..., label % 3] += 60 + 20 * label
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def things(folder: Path) -> Path:
    """Shards of four classes of coloured noise, in `folder`."""
    folder.mkdir(exist_ok=True)
    shards, splits = [], {}
    for start, (split, count) in enumerate(COUNTS.items()):
        rows: list[dict[str, Any]] = []
        for label, name in enumerate(NAMES):
            for number in range(count):
                image = picture(label, 100 * start + number)
                row = {"id": f"{name}/{split}-{number}", "image": image, "width": 32, "height": 32}
                row |= {"captions": [], "label": label, "class_name": name, "split": split}
                rows.append(row | {"sha256": sha256_bytes(image)})
        path = folder / f"{split}-00000.parquet"
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
        entry = {"file": path.name, "split": split, "rows": len(rows), "captions": 0}
        shards.append(entry | {"sha256": sha256_file(path)})
        splits[split] = {"images": len(rows), "captions": 0}
    manifest = {"format": "cliptune-shards-1", "source": {}, "splits": splits, "shards": shards}
    manifest |= {"classes": {}, "quarantined": {}, "notes": {}, "created": ""}
    write_json(folder / "manifest.json", manifest)
    return folder


def in_this_process(*words: object) -> int:
    """As `command`, without the seconds that a process takes to import."""
    stage, *flags = map(str, words)
    try:
        stage_main(stage, flags)
    except SystemExit as exit_:
        return int(str(exit_.code))
    return 0
