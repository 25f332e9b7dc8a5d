"""Finished embeddings as they are found: kinds of files, of numbers, of metadata, and pickles."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from pipelines.encode.args import Args
from pipelines.encode.embeddings import encode_given
from pipelines.encode.layout import read_layout
from pipelines.encode.metadata import labels_of
from tests.pipelines.encode.test_given import NAMES, ROWS, WIDTH, save, table, vectors
from trainables.data.shards import ShardSet
from trainables.errors import DataError
from trainables.features.features import backbone_of, open_features

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda array: array.astype(">f2"),
        lambda array: array.astype(">f4"),
        lambda array: array.astype(np.float64),
    ],
)
def test_an_array_in_another_order_or_precision_is_the_same(
    tmp_path: Path, change: Callable[[Array], Array]
) -> None:
    save(tmp_path / "img_emb/img_emb_0.npy", change(vectors(ROWS, 1)))
    found = np.concatenate([*read_layout(tmp_path).images.chunks()])
    assert found.dtype in (np.float16, np.float32)
    assert np.array_equal(found, vectors(ROWS, 1))


def test_bfloat16_is_read_as_it_is(tmp_path: Path) -> None:
    images = torch.randn(ROWS, WIDTH).bfloat16()
    save_file({"image_embeds": images}, tmp_path / "vectors.safetensors")
    found = np.concatenate([*read_layout(tmp_path).images.chunks()])
    assert np.array_equal(found, images.float().numpy())


def lists(array: Array) -> pa.Array:
    return pa.array(list(array.astype(np.float32)), pa.list_(pa.float32()))


def test_columns_of_vectors_need_no_others(tmp_path: Path) -> None:
    columns = {
        "image_embedding": lists(vectors(ROWS, 1)),
        "text_embedding": lists(vectors(ROWS, 2)),
    }
    (tmp_path / "given").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "given/rows.parquet")
    store, _ = encode_given(Args(embeddings=tmp_path / "given", out=tmp_path / "features"))
    train = open_features(store, "train", backbone_of(store))
    rows = [int(id_) for id_ in train.ids]
    assert np.array_equal(train.text_embeds().numpy(), vectors(ROWS, 2)[rows])


def test_labels_are_called_as_a_saved_data_set_says(tmp_path: Path) -> None:
    """A `ClassLabel` column, with a row of no class."""
    about = {"info": {"features": {"label": {"names": list(NAMES), "_type": "ClassLabel"}}}}
    columns = {
        "image_embedding": lists(vectors(3, 1)),
        "label": pa.array([2, 0, -1]),
        "caption_0": ["a", "b", "c"],
        "caption_1": ["d", None, "f"],
    }
    rows = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(rows, tmp_path / "rows.parquet")
    found = read_layout(tmp_path).table
    assert found is not None
    [every] = found.chunks()
    assert [row["class_name"] for row in every] == [NAMES[2], NAMES[0], None]
    assert [row["caption"] for row in every] == [["a", "d"], ["b"], ["c", "f"]]
    assert labels_of(found) == {NAMES[0]: 0, NAMES[2]: 2}


def test_a_label_is_of_one_class(tmp_path: Path) -> None:
    save(tmp_path / "img_emb/img_emb_0.npy", vectors(2, 1))
    rows = [{"class_name": name, "label": 0} for name in NAMES[:2]]
    table(tmp_path / "metadata/metadata_0.parquet", rows)
    with pytest.raises(DataError, match="row 1: label 0 must be one class, got `pond` and"):
        labels_of(read_layout(tmp_path).table)


def test_splits_have_several_names(tmp_path: Path) -> None:
    save(tmp_path / "given/img_emb/img_emb_0.npy", vectors(ROWS, 1))
    splits = ("TRAIN", "training", "Val", "validation", "dev", "test")
    rows = [{"class_name": "pond", "split": splits[n % 6]} for n in range(ROWS)]
    table(tmp_path / "given/metadata/metadata_0.parquet", rows)
    store, _ = encode_given(Args(embeddings=tmp_path / "given", out=tmp_path / "features"))
    found = {name: split["images"] for name, split in ShardSet.open(store).splits.items()}
    assert found == {"train": 20, "val": 30, "test": 10}


def _torch_array(path: Path, array: Array) -> None:
    torch.save(torch.nn.Parameter(torch.from_numpy(array)), path)


def _torch_half(path: Path, array: Array) -> None:
    torch.save(torch.from_numpy(array).bfloat16(), path)


def _pickled(path: Path, array: Array) -> None:
    path.write_bytes(pickle.dumps(array))


# In a script of two lines nobody closes a file.
LEFT_OPEN = "ignore::pytest.PytestUnraisableExceptionWarning"


def convert(folder: Path) -> None:
    """Run the two lines that the refusal gives."""
    with pytest.raises(DataError, match="is refused: it can run code") as refused:
        read_layout(folder)
    lines = re.findall(r"`([^`]+)`", str(refused.value).partition("away: ")[2])
    assert len(lines) == 2
    exec("\n".join(lines), {"torch": torch, "numpy": np, "pickle": pickle})


@pytest.mark.filterwarnings(LEFT_OPEN)
@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".pt", _torch_array),
        (".pth", _torch_half),
        (".bin", _torch_half),
        (".pkl", _pickled),
        (".pickle", _pickled),
    ],
)
def test_the_two_lines_convert(
    tmp_path: Path,
    suffix: str,
    write: Callable[[Path, Array], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write(tmp_path / f"given{suffix}", array)
    monkeypatch.chdir(tmp_path)
    convert(tmp_path)
    (tmp_path / f"given{suffix}").unlink()
    assert np.array_equal(np.concatenate([*read_layout(tmp_path).images.chunks()]), array)


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("done",)


@pytest.mark.filterwarnings(LEFT_OPEN)
@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_the_two_lines_run_no_code_of_the_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"given{suffix}"
    torch.save(Harmful(), path) if suffix == ".pt" else path.write_bytes(pickle.dumps(Harmful()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        convert(tmp_path)
    assert not (tmp_path / "done").exists()
