"""A picture is one row of its split, whatever the order and the format of what is said of it."""

from __future__ import annotations

import csv
import io
import itertools
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.draw.labelled import read_labelled
from pipelines.shards import writer
from pipelines.shards.__main__ import Args, run
from pipelines.shards.united import united
from pipelines.shards.writer import ShardWriter
from tests.pictures import jpeg
from trainables.data.shards import SPLITS, Seal, ShardSet, captions_of
from trainables.errors import DataError

SEAL = Seal("a test of what was written")
Row = dict[str, Any]


def make(source: Path, out: Path, **flags: Any) -> ShardSet:
    run(Args(str(source), out, **flags))
    return ShardSet.open(out)


def rows_of(shards: ShardSet) -> list[Row]:
    return [row for split in shards.splits for row in shards.rows(split, seal=SEAL)]


def counts_of(shards: ShardSet) -> dict[str, Any]:
    return {name: count for name, count in shards.manifest["counts"].items() if name != "on_disk"}


def content(shards: ShardSet) -> dict[tuple[str, str], Any]:
    """What is said of each picture, but for the order."""
    found = {}
    for row in rows_of(shards):
        said = (sorted(row["captions"]), row["label"], row["class_name"], row["classes"])
        assert (row["split"], row["sha256"]) not in found
        found[row["split"], row["sha256"]] = said
    return found


def draw(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for n in range(count):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))


def table(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, ["image", *(name for name in rows[0] if name != "image")])
        out.writeheader()
        out.writerows(rows)
    return path


def parquet(path: Path, rows: Sequence[Row]) -> Path:
    """The pictures' bytes in each row."""
    folder = path.parent
    cells = [row | {"image": (folder / row["image"]).read_bytes()} for row in rows]
    pq.write_table(pa.Table.from_pylist(cells), path)
    return path


def tar(path: Path, rows: Sequence[Row]) -> Path:
    """A sample a row, with its caption and its class."""
    with tarfile.open(path, "w") as out:
        for number, row in enumerate(rows):
            parts = {
                "jpg": (path.parent / row["image"]).read_bytes(),
                "txt": str(row["caption"]).encode(),
                "cls": str(row["label"]).encode() if "label" in row else None,
            }
            for suffix, data in parts.items():
                if data is not None:
                    info = tarfile.TarInfo(f"{number:03}.{suffix}")
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
    return path


WRITERS: dict[str, Callable[[Path, Sequence[Row]], Path]] = {
    "csv": table,
    "parquet": parquet,
    "tar": tar,
}
CAPTIONS = [
    {"image": f"{n}.jpg", "caption": f"caption {m} of {n}"} for n in range(9) for m in range(4)
]
CAPTIONS.insert(2, {"image": "0.jpg", "caption": "caption 0 of 0"})  # said twice


@pytest.fixture(params=["in memory", "on disk"])
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether later records find their picture's row on disk."""
    if request.param == "on disk":
        monkeypatch.setattr(writer, "_GROUP_BYTES", 2 * len(jpeg(0)))
    return bool(request.param == "on disk")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.usefixtures("late")
def test_a_row_a_caption_in_any_order_is_a_row_a_picture(tmp_path: Path, kind: str) -> None:
    draw(tmp_path, 9)
    shuffled = random.Random(3).sample(CAPTIONS, len(CAPTIONS))
    ordered = WRITERS[kind](tmp_path / f"sorted.{kind}", CAPTIONS)
    merged = make(ordered, tmp_path / "sorted", split="train")
    source = WRITERS[kind](tmp_path / f"shuffled.{kind}", shuffled)
    shards = make(source, tmp_path / "out", split="train", rows_per_shard=4)
    assert content(shards) == content(merged)
    assert len(content(shards)) == 9
    # Samples of a tar are records of their own: the picture is told twice, and not the caption.
    twice = kind != "tar"
    assert sorted(len(row["captions"]) for row in rows_of(shards)) == [4] * 8 + [4 + twice]
    assert shards.splits == merged.splits == {"train": {"images": 9, "captions": 36 + twice}}
    assert [shard["rows"] for shard in shards.manifest["shards"]] == [4, 4, 1]
    for one in (shards, merged):
        assert one.manifest["notes"].get("captions_said_twice", 0) == twice
        counts = {"read": 37, "rows": 9, "united": 28, "left_out": {}, "quarantined": 0}
        assert counts_of(one) == counts


@pytest.mark.usefixtures("late")
def test_captions_stand_in_the_order_seen(tmp_path: Path) -> None:
    draw(tmp_path, 9)
    order = random.Random(4).sample(CAPTIONS, len(CAPTIONS))
    shards = make(table(tmp_path / "t.csv", order), tmp_path / "out", split="train")
    for row in rows_of(shards):
        said = [one["caption"] for one in order if one["image"] == row["id"]]
        assert row["captions"] == said
    assert [row["id"] for row in rows_of(shards)] == list(
        dict.fromkeys(one["image"] for one in order)
    )


@pytest.mark.usefixtures("late")
def test_equal_labels_are_one_class_and_different_ones_are_several(tmp_path: Path) -> None:
    draw(tmp_path, 6)
    rows = [
        {"image": f"{n}.jpg", "class": name, "split": split}
        for split, first in (("train", 0), ("val", 3))
        for n, name in enumerate(("cat", "dog", "cat"), first)
    ]
    rows += [
        {"image": "0.jpg", "class": "cat", "split": "train"},  # says nothing new
        {"image": "2.jpg", "class": "dog", "split": "train"},
        {"image": "2.jpg", "class": "cat", "split": "train"},
    ]
    shards = make(parquet(tmp_path / "t.parquet", rows), tmp_path / "out")
    found = {row["sha256"]: row for row in rows_of(shards)}
    assert len(found) == 6
    several = [row for row in found.values() if row["classes"] is not None]
    assert [(row["label"], row["class_name"], row["classes"]) for row in several] == [
        (None, None, ["cat", "dog"])
    ]
    assert captions_of(several[0]) == ["a photo of a cat.", "a photo of a dog."]
    assert shards.manifest["notes"] == {"images_of_several_classes": 1}
    assert shards.manifest["counts"]["united"] == 3
    labelled = read_labelled(shards)
    assert {one.label for one in labelled.members["train"]} == {0, 1}
    assert len(labelled.members["train"]) == 2
    (note,) = labelled.notes()
    assert note.startswith("note: 1 of 3 `train` images are left out")


@pytest.mark.usefixtures("late")
def test_the_order_of_labels_and_captions_is_without_effect(tmp_path: Path) -> None:
    draw(tmp_path, 4)
    said: list[Row] = [
        {"image": "0.jpg", "caption": "one", "class": None, "label": None},
        {"image": "0.jpg", "caption": "two", "class": "cat", "label": "3"},
        {"image": "0.jpg", "caption": "one", "class": "dog", "label": "5"},
    ]
    more = [said[0] | {"image": f"{n}.jpg", "caption": "x"} for n in (1, 2, 3)]
    found = []
    for number, (first, *others) in enumerate(itertools.permutations(said)):
        source = parquet(tmp_path / f"{number}.parquet", [first, *more, *others])
        found.append(content(make(source, tmp_path / f"out-{number}", split="val")))
    assert all(one == found[0] for one in found)
    assert (["one", "one", "two"], None, None, ["cat", "dog"]) in found[0].values()


@pytest.mark.usefixtures("late")
def test_class_names_alone_in_any_order_are_the_same_classes(tmp_path: Path) -> None:
    draw(tmp_path, 9)
    rows = [{"image": f"{n}.jpg", "class": ["ant", "bee", "cow"][n % 3]} for n in range(9)]
    rows += [{"image": f"{n}.jpg", "class": "dog"} for n in (2, 5)]
    found = []
    for seed in range(4):
        order = random.Random(seed).sample(rows, len(rows))
        source = table(tmp_path / f"{seed}.csv", order)
        shards = make(source, tmp_path / f"out-{seed}", split="train", rows_per_shard=4)
        assert shards.classes == {"ant": 0, "bee": 1, "cow": 2, "dog": 3}
        found.append(content(shards))
    assert all(one == found[0] for one in found)
    assert sum(classes is not None for *_, classes in found[0].values()) == 2


def test_an_id_twice_is_the_same_picture_or_a_fault(tmp_path: Path) -> None:
    draw(tmp_path, 4)
    rows = [
        {"image": f"{n}.jpg", "id": name, "caption": f"caption {place}"}
        for place, (n, name) in enumerate([(0, "a"), (1, "b"), (0, "a"), (2, "a"), (0, "b")])
    ]
    shards = make(
        table(tmp_path / "t.csv", rows), tmp_path / "out", split="train", max_bad_fraction=0.5
    )
    assert {row["id"]: row["captions"] for row in rows_of(shards)} == {
        "a": ["caption 0", "caption 2"],
        "b": ["caption 1"],
    }
    assert shards.manifest["quarantined"] == {"duplicate id": 2}
    assert counts_of(shards) == {
        "read": 5, "rows": 2, "united": 1, "left_out": {}, "quarantined": 2,
    }  # fmt: skip


def test_a_bad_caption_is_refused_alone_in_any_order(tmp_path: Path) -> None:
    draw(tmp_path, 9)
    rows = [row | {"caption": ""} if number == 7 else row for number, row in enumerate(CAPTIONS)]
    found = []
    for name, order in (("a", rows), ("b", random.Random(5).sample(rows, len(rows)))):
        flags: Row = {"split": "train", "max_bad_fraction": 0.1}
        shards = make(table(tmp_path / f"{name}.csv", order), tmp_path / name, **flags)
        found.append((content(shards), counts_of(shards), shards.manifest["quarantined"]))
    assert found[0] == found[1]
    assert found[0][1]["read"] == 37
    assert found[0][1]["quarantined"] == 1


@pytest.mark.usefixtures("late")
def test_a_picture_that_gives_way_takes_its_records_along(tmp_path: Path) -> None:
    draw(tmp_path, 6)
    splits = ["train", "train", "val", "test", "train", "val", "train", "val", "val", "train"]
    rows = [
        {"image": f"{n}.jpg", "caption": f"caption {place}", "split": split}
        for place, (n, split) in enumerate(zip((0, 1, 2, 3, 0, 0, 4, 2, 0, 1), splits, strict=True))
    ]
    source, out = table(tmp_path / "t.csv", rows), tmp_path / "out"
    with pytest.raises(DataError, match="the same image is in two splits"):
        make(source, out)
    shards = make(source, out, on_leak="drop", rows_per_shard=2)
    assert {(row["split"], *row["captions"]) for row in rows_of(shards)} == {
        ("train", "caption 1", "caption 9"),
        ("train", "caption 6"),
        ("val", "caption 2", "caption 7"),
        ("val", "caption 5", "caption 8"),
        ("test", "caption 3"),
    }
    assert counts_of(shards) == {
        "read": 10, "rows": 5, "united": 3,
        "left_out": {"same image in another split": 2}, "quarantined": 0,
    }  # fmt: skip
    assert shards.splits["train"] == {"images": 2, "captions": 3}


def said(*captions: str, group: str | None = None) -> Row:
    own = {"captions": list(captions), "group": group}
    return own | {"label": None, "class_name": None, "classes": None}


@pytest.mark.parametrize(
    ("records", "right"),
    [
        ([said("a", "a")], ["a", "a"]),
        ([said("a", "a"), said("b", "a")], ["a", "a", "b"]),
        ([said("b", "a"), said("a", "a")], ["b", "a", "a"]),
        ([said("a", group="x"), said("a", group="x")], ["a", "a"]),
        ([said("a", group="x"), said("a", group="y"), said("b", group="y")], ["a", "b"]),
        ([said("a", group="x"), said("a", group="y"), said("a", group="x")], ["a", "a"]),
        ([said("a"), said("a"), said("a", group="x")], ["a"]),
    ],
)
def test_a_caption_counts_as_in_the_group_that_says_it_most_often(
    records: list[Row], right: list[str]
) -> None:
    assert united(records[0], iter(records[1:]))["captions"] == right


@pytest.mark.usefixtures("late")
def test_a_picture_under_two_names_has_the_captions_of_the_fuller_in_any_order(
    tmp_path: Path,
) -> None:
    draw(tmp_path, 4)
    (tmp_path / "copy.jpg").write_bytes(jpeg(0))
    told = [("0.jpg", "x"), ("0.jpg", "x"), ("copy.jpg", "x"), ("copy.jpg", "y"), ("copy.jpg", "y")]
    rows = [{"image": name, "caption": caption} for name, caption in told]
    rows += [{"image": f"{n}.jpg", "caption": "z"} for n in (1, 2, 3)]
    for seed in range(8):
        order = random.Random(seed).sample(rows, len(rows))
        shards = make(table(tmp_path / f"{seed}.csv", order), tmp_path / f"{seed}", split="train")
        (row,) = [row for row in rows_of(shards) if row["id"] in ("0.jpg", "copy.jpg")]
        assert sorted(row["captions"]) == ["x", "x", "y", "y"]
        assert shards.manifest["notes"] == {"captions_said_twice": 2}
        assert shards.splits["train"] == {"images": 4, "captions": 7}


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_second_table_of_the_same_pictures_doubles_no_caption(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "tables"
    draw(folder, 9)
    for n in range(2):
        order = random.Random(n).sample(CAPTIONS, len(CAPTIONS))
        WRITERS[kind](folder / f"{n}.{kind}", order)
    shards = make(folder, tmp_path / "out", split="train")
    assert shards.splits["train"] == {"images": 9, "captions": 37}
    assert counts_of(shards)["united"] == 2 * 37 - 9


def test_ids_of_captions_leave_the_image_its_name(tmp_path: Path) -> None:
    draw(tmp_path, 2)
    rows = [
        {"image": name, "id": str(number), "caption": "a disc"}
        for number, name in enumerate(["0.jpg", "1.jpg", "0.jpg"])
    ]
    shards = make(table(tmp_path / "t.csv", rows), tmp_path / "out", split="train")
    assert sorted(len(row["captions"]) for row in rows_of(shards)) == [1, 2]


def test_what_is_said_of_a_picture_leaves_memory_as_pictures_do(tmp_path: Path) -> None:
    """A picture said a million times holds no more of them than a row group may have."""
    out = ShardWriter(tmp_path, 1000)
    row = {
        "id": "a", "image": b"x", "width": 1, "height": 1, "captions": ["a"], "label": None,
        "class_name": None, "split": SPLITS[0], "sha256": "00", "classes": None, "group": "t: a",
    }  # fmt: skip
    out.add(row)
    taken = sum(out.unite(row | {"captions": ["word" * 25_000]}) for _ in range(400))
    assert 100 < taken < 170  # of 100 kB each, 16 MiB
    assert not out.unite(row)
    out.add(row | {"sha256": "01"})
    assert not out.unite(row)  # its row is on disk
    assert out.unite(row | {"sha256": "01"})


def test_only_shards_that_lack_something_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_GROUP_BYTES", 1)
    again = []
    rewrite = writer._Shard.rewrite
    monkeypatch.setattr(
        writer._Shard,
        "rewrite",
        lambda self, amend: (again.append(self.path.name), rewrite(self, amend))[1],
    )
    draw(tmp_path, 9)
    rows = [{"image": f"{n}.jpg", "caption": f"caption {n}"} for n in range(9)]
    rows.append({"image": "4.jpg", "caption": "more"})
    source = table(tmp_path / "t.csv", rows)
    shards = make(source, tmp_path / "out", split="train", rows_per_shard=3)
    assert again == ["train-00001.parquet"]
    assert shards.splits["train"] == {"images": 9, "captions": 10}
