"""Hugging Face data sets as people have them: images that are only named, lists of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from pipelines.shards.records import check
from pipelines.sources.base import BadRecord, Options
from pipelines.sources.registry import SOURCES
from tests.pictures import draw, jpeg

# `Image` as it is stored; saved as one, images that are named would be copied into the data set.
NAMED = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def saved(folder: Path, image: Any, cells: list[Any]) -> Path:
    """A data set of these images, in a folder."""
    features = datasets.Features({"image": image, "caption": datasets.Value("string")})
    rows = {"image": cells, "caption": [f"disc {n}" for n in range(len(cells))]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return folder


def outcomes(source: Path, options: Options | None = None) -> list[Any]:
    records = SOURCES["huggingface"](str(source), options or Options())
    checked = [check(record, "source") for record in records]
    return [o.reason if isinstance(o, BadRecord) else o.row["captions"] for o in checked]


@pytest.mark.parametrize("image", [NAMED, datasets.Value("string")])
def test_images_that_are_only_named(tmp_path: Path, image: Any) -> None:
    names = ["0.jpg", "1.jpg"]
    named = (
        names
        if isinstance(image, datasets.Value)
        else [{"bytes": None, "path": name} for name in names]
    )
    source = saved(tmp_path / "set", image, named)
    draw(source / "pictures", *names)
    assert outcomes(source) == [["disc 0"], ["disc 1"]]


@pytest.mark.parametrize("image", [NAMED, datasets.Value("string")])
def test_images_that_are_named_elsewhere(tmp_path: Path, image: Any) -> None:
    draw(tmp_path / "pictures", "0.jpg", "1.jpg")
    names = [str(tmp_path / "pictures" / f"{n}.jpg") for n in range(2)]
    named = (
        names
        if isinstance(image, datasets.Value)
        else [{"bytes": None, "path": name} for name in names]
    )
    source = saved(tmp_path / "set", image, named)
    why = "image path leaves the folder: say with --images where images may lie"
    assert outcomes(source) == [why, why]
    assert outcomes(source, Options(tmp_path / "pictures")) == [["disc 0"], ["disc 1"]]


def test_several_images_of_a_caption_are_refused_and_one_is_read(tmp_path: Path) -> None:
    cells = [[{"bytes": jpeg(9), "path": None}], [{"bytes": jpeg(n), "path": None} for n in (1, 2)]]
    source = saved(tmp_path / "set", datasets.List(datasets.Image()), cells)
    many = "2 images in a row: give each a row of its own"
    assert outcomes(source) == [["disc 0"], many]
