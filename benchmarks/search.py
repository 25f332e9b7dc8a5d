"""A whole search from JPEG files on, against one process a trial that recomputes everything.

Flows in: nothing; pictures and model are drawn. Flows out: CPU seconds of all processes of either
side, starts included. Ours: `cliptune shards`, `encode`, `tune`. The other: for each trial that our
search ran, `benchmarks.naive` with the same config, for as many epochs as ASHA let it train.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.captions import FILE
from benchmarks.harness import Case, Outputs, Row
from benchmarks.images import SIZES, jpeg, noise
from benchmarks.models import save
from benchmarks.processes import ProcessTree
from trainables.data.store import find_store
from trainables.files import read_json, write_json

ROOT = Path(__file__).parents[1]
SHAPE = "B/16"
TRIALS, EPOCHS = 16, 9
PICTURES = {"train": 3, "val": 1, "test": 1}  # of each of 37 classes
# Fixed is what `naive` leaves out, and a learning rate at which sums in another order do not end
# elsewhere; the schedule, the prompt's length and its start are searched.
FIXED = (
    *("batch_size=32", "loss.captions_per_image=1", "loss.hard_negatives=none"),
    *("loss.label_smoothing=0", "temperature.policy=fixed", "temperature.scale=20"),
    *("optim.lr=1e-3", "precision=fp32"),
)
ENV = {
    **os.environ,
    **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    **{"TOKENIZERS_PARALLELISM": "false"},
}


class Search:
    """Both sides of the search, in one folder."""

    def __init__(self, folder: Path, shape: str = SHAPE) -> None:
        self.folder, self.tree = folder, ProcessTree()
        names = list(read_json(FILE)["classes"])
        captions = [f"a photo of a {name}." for name in names]
        self.clip = save(folder / "clip", shape, captions)
        for kind, name in enumerate(names):
            for split, count in PICTURES.items():
                for number in range(count):
                    path = folder / "images" / split / name / f"{number}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(_photo(kind, len(names) * (1 + number), split))

    def python(self, *words: object) -> None:
        self.tree.run([sys.executable, "-m", *map(str, words)], ENV, ROOT)

    def store(self) -> None:
        """Features of the pictures."""
        shards, features = (self.folder / name for name in ("shards", "features"))
        self.python(
            "pipelines.shards.__main__", "--source", self.folder / "images", "--out", shards
        )
        self.python(
            *("pipelines.encode.__main__", "--shards", shards),
            *("--backbone", self.clip, "--out", features),
        )

    def tune(self, *words: object) -> None:
        """A search with one worker."""
        self.python(
            *("pipelines.tune.__main__", "--features", find_store(self.folder / "features")),
            *("--out", self.folder / "study", "--concurrent", 1, "--metric", "val/t2i_mrr"),
            *words,
        )

    def trial(self, number: int) -> Path:
        return self.folder / "study" / "trials" / f"{number:04d}"

    def ours(self) -> Outputs:
        self.store()
        self.tune(
            *("--adapter", "soft_prompt", "--trials", TRIALS, "--epochs", EPOCHS),
            *("--set", *FIXED),
        )
        return outputs({trial.name: rows_of(trial) for trial in self.trials()})

    def trials(self) -> list[Path]:
        return [self.trial(number) for number in range(TRIALS)]

    def baseline(self) -> Outputs:
        store = find_store(self.folder / "features")
        files = {
            split: [str(self.folder / "images" / name) for name in read_json(store / ids)]
            for split, ids in (("train", "train.ids.json"), ("val", "val.ids.json"))
        }
        rows = {}
        for trial in self.trials():
            job = {"clip": str(self.clip), "config": read_json(trial / "config.json"), **files}
            path = self.folder / f"{trial.name}.json"
            write_json(path, job | {"epochs": len(rows_of(trial))})
            self.python("benchmarks.naive", path)
            rows[trial.name] = read_json(path.with_suffix(".rows.json"))
        return outputs(rows)


def _photo(kind: int, number: int, split: str) -> bytes:
    """Pictures of one class have a layout in common."""
    size = SIZES[number % len(SIZES)]
    own = noise(list(PICTURES).index(split) + 1000 * (kind + number), *size)
    return jpeg((noise(kind, *size) + own) / 2**0.5)


def rows_of(trial: Path) -> list[dict[str, float]]:
    """A trial's epochs, under the names that `naive` gives."""
    lines = (trial / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [{"loss": row["train/loss"], "val": row["val/t2i_mrr"]} for row in rows]


def outputs(trials: dict[str, list[dict[str, float]]]) -> Outputs:
    """What must agree: each trial's last loss and val metric."""

    def last(key: str) -> Tensor:
        return torch.tensor([rows[-1][key] for rows in trials.values()])

    return {"epochs": torch.tensor([len(rows) for rows in trials.values()]).float()} | {
        key: last(key) for key in ("loss", "val")
    }


def whole() -> Case:
    folder = tempfile.TemporaryDirectory(prefix="cliptune-bench-")
    search = Search(Path(folder.name))

    def baseline() -> Outputs:
        with folder:  # the second of the two: nothing is needed after it
            return search.baseline()

    return Case(baseline, search.ours, search.tree.seconds)


ROWS = (
    Row(
        "search/soft-prompt",
        f"16 soft-prompt trials under ASHA from JPEGs on, 37 classes, {SHAPE}, starts of all "
        "processes included",
        20,
        whole,
        tolerance=1e-4,
        once=True,
    ),
)
