"""Lance tables, where Lance is installed; what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.shards.records import check
from pipelines.sources.base import BadRecord, Options, RawRecord
from pipelines.sources.registry import SOURCES, source_format
from tests.pictures import draw, jpeg
from trainables.errors import DataError


def read(source: Path) -> list[RawRecord]:
    assert source_format(str(source), None) == "lance"
    return list(SOURCES["lance"](str(source), Options()))


def test_a_table_of_bytes_and_one_of_paths(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")

    draw(tmp_path / "images", *(f"{n}.jpg" for n in range(40)))
    columns = {
        "image": [jpeg(n) for n in range(40)],
        "captions": [[f"disc {n}", "round"] for n in range(40)],
        "split": ["train", "val"] * 20,
    }
    lance.write_dataset(pa.table(columns), str(tmp_path / "bytes.lance"))
    columns["image"] = [f"{n}.jpg" for n in range(40)]
    lance.write_dataset(pa.table(columns), str(tmp_path / "paths.lance"))
    for name in ("bytes.lance", "paths.lance"):
        for n, record in enumerate(read(tmp_path / name)):
            checked = check(record, "source")
            assert not isinstance(checked, BadRecord)
            assert checked.row["image"] == jpeg(n)
            assert checked.row["captions"] == [f"disc {n}", "round"]
            assert checked.row["split"] == ("train", "val")[n % 2]
    assert n == 39
    (tmp_path / "base").mkdir()
    (tmp_path / "bytes.lance").rename(tmp_path / "base" / "bytes.lance")
    assert len(read(tmp_path / "base")) == 40


def test_a_damaged_table_is_one_sentence(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")

    columns = {"image": [jpeg(n) for n in range(40)], "caption": ["x"] * 40}
    lance.write_dataset(pa.table(columns), str(tmp_path / "t.lance"))
    (data,) = (tmp_path / "t.lance" / "data").iterdir()
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(DataError, match=r"t.lance` is not a valid Lance table after row 0"):
        read(tmp_path / "t.lance")


def test_without_lance_it_is_said_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.lance").mkdir()
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(DataError, match=r"`pip install cliptune\[lance\]`"):
        read(tmp_path / "t.lance")
