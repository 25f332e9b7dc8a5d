"""Runs of every task on one tiny CLIP, and a folder of photos with metadata."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

import cliptune
from pipelines.serve.engine import Engine
from pipelines.serve.gallery import Photos
from pipelines.serve.shelf import load_shelf, loads_once
from tests.things import things
from tests.tiny import picture, tiny_shards

PHOTOS = 12


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    home = tmp_path_factory.mktemp("serve")
    tiny_shards(home / "shards", {"train": 12, "val": 6, "test": 6})
    things(home / "things")
    store = cliptune.encode(home / "shards", backbone=clip, out=home / "store", pixels=True)
    quick = {"epochs": 1, "optim.lr": 0.05, "precision": "fp32"}
    for name, adapter, more in (
        ("soft", "soft_prompt", {}),
        ("projection", "projection", {}),
        ("lora", "lora", {"adapter.tower": "both"}),
        ("words", "prefix_captioner", {"adapter.mapper": "mlp"}),
    ):
        cliptune.train(store, home / "runs" / name, adapter=adapter, set=quick | more)
    labelled = cliptune.encode(home / "things", backbone=clip, out=home / "labelled")
    draw = cliptune.draw(home / "things", shots=2, out=home / "draw.json")
    cliptune.train(
        labelled, home / "runs/few", adapter="linear_probe", draw=draw, set={"epochs": 3}
    )
    lay(home / "photos")
    return home


def lay(folder: Path) -> None:
    """Photos in two folders, and what is known of all but the last."""
    for n in range(PHOTOS):
        path = folder / name_of(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n))
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "year", "town", "wet"])
        table.writerows(
            [name_of(n), 2000 + n, ["Rome", "Oslo"][n % 2], str(n < 4).lower()]
            for n in range(PHOTOS - 1)
        )


def name_of(n: int) -> str:
    return f"{['a', 'b'][n % 2]}/{n}.jpg"


@pytest.fixture
def own(home: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    for name in ("runs", "photos"):
        shutil.copytree(home / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="package")
def engine(home: Path) -> Engine:
    gallery = Photos(home / "photos")
    shelf = load_shelf([home / "runs"], gallery, home / "index", loads_once())
    return Engine(shelf, gallery)
