"""The `shards` stage as a user runs it, and the shard set that it leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import lock_descriptor
from PIL import Image

from pipelines.shards import work as sharding
from pipelines.shards.__main__ import Args, run
from pipelines.shards.ledger import Ledger, Twin
from pipelines.sources.base import BadRecord, RawRecord
from tests import ROOT
from tests.pictures import jpeg, png
from trainables.data.shards import SCHEMA, Seal, ShardSet
from trainables.errors import ConfigError, DataError
from trainables.files import sha256_bytes

SEAL = Seal("a test of the seal")


def table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL source; a picture is drawn for each image named that is not there yet."""
    for seed, row in enumerate(rows):
        path = folder / str(row.get("image", "none"))
        if path.parent == folder and "\0" not in path.name and not path.exists():
            path.write_bytes(jpeg(seed))
    path = folder / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(count: int, split: str = "train", first: int = 0) -> list[dict[str, Any]]:
    return [
        {"image": f"{n}.jpg", "caption": f"caption {n}", "split": split}
        for n in range(first, first + count)
    ]


def make(source: Path, out: Path, **flags: Any) -> ShardSet:
    run(Args(str(source), out, **flags))
    return ShardSet.open(out)


def all_rows(shards: ShardSet) -> list[dict[str, Any]]:
    return [row for split in shards.splits for row in shards.rows(split, seal=SEAL)]


def quarantined(folder: Path) -> dict[str, str]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return {line["id"]: line["reason"] for line in map(json.loads, lines)}


def bad_reason(tmp_path: Path, **row: Any) -> str:
    """Why a record like this one is refused, beside a good one."""
    (tmp_path / "odd.jpg").write_bytes(row.pop("data", jpeg(99)))
    odd = {"image": "odd.jpg", "caption": "odd", "split": "train"} | row
    source = table(tmp_path, [*rows_of(1), odd])
    out = tmp_path / "out"
    shards = make(source, out, max_bad_fraction=0.5, overwrite=True)
    assert [row["id"] for row in all_rows(shards)] == ["0.jpg"]
    (reason,) = quarantined(out).values()
    return reason


# --- what is written ----------------------------------------------------------------------------


def test_rows_manifest_and_schema(tmp_path: Path) -> None:
    rows = rows_of(5) + rows_of(2, "val", 5) + rows_of(3, "test", 7)
    source = table(tmp_path, rows)
    shards = make(source, tmp_path / "out", rows_per_shard=2)
    assert shards.splits == {
        "train": {"images": 5, "captions": 5},
        "val": {"images": 2, "captions": 2},
        "test": {"images": 3, "captions": 3},
    }
    assert [f.name for f in shards.files("train")] == [f"train-0000{n}.parquet" for n in range(3)]
    assert pq.read_schema(shards.files("train")[0]).equals(SCHEMA)
    for found, row in zip(all_rows(shards), rows, strict=True):
        data = (tmp_path / row["image"]).read_bytes()
        assert found == {
            "id": row["image"], "image": data, "width": 24, "height": 16,
            "captions": [row["caption"]], "label": None, "class_name": None,
            "split": row["split"], "sha256": sha256_bytes(data), "classes": None,
        }  # fmt: skip
    assert quarantined(tmp_path / "out") == {}
    assert shards.manifest["source"]["format"] == "table"


def test_rows_come_in_the_order_of_the_source_however_long_each_takes(tmp_path: Path) -> None:
    rows = rows_of(60)
    for n in range(0, 60, 7):  # big pictures among small ones
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n, 900, 900))
    shards = make(table(tmp_path, rows), tmp_path / "out")
    assert [row["id"] for row in shards.rows("train", ["id"])] == [row["image"] for row in rows]


def test_row_groups_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.shards.writer._GROUP_BYTES", 3 * len(jpeg(0)))
    shards = make(table(tmp_path, rows_of(10)), tmp_path / "out")
    (file,) = shards.files("train")
    assert pq.ParquetFile(file).num_row_groups >= 3
    assert len(list(shards.rows("train"))) == 10


def test_words_are_cleaned(tmp_path: Path) -> None:
    captions = ["  a\t cafe\u0301 \n here ", "kept <|endoftext|> as text"]
    source = table(tmp_path, [{"image": "0.jpg", "caption": captions, "split": "train"}])
    shards = make(source, tmp_path / "out")
    assert all_rows(shards)[0]["captions"] == ["a caf\u00e9 here", "kept <|endoftext|> as text"]
    assert shards.manifest["notes"] == {"special_token_captions": 1}


def test_notes_count_rotated_images_and_clips(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (24, 16)).save(tmp_path / "0.jpg", exif=tags)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "1.jpg", "GIF", save_all=True, append_images=frames[1:])
    shards = make(table(tmp_path, rows_of(2)), tmp_path / "out")
    assert shards.manifest["notes"] == {"clips": 1, "exif_rotated": 1}
    assert [(row["width"], row["height"]) for row in shards.rows("train")] == [(16, 24), (8, 8)]


def test_split_by_hash_is_stable_and_said(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "caption": "word"} for n in range(100)]
    shards = make(table(tmp_path, rows), tmp_path / "out")
    assert shards.manifest["notes"] == {"split_by_hash": 100}
    assert shards.splits["train"]["images"] in range(70, 90)
    assert sum(split["images"] for split in shards.splits.values()) == 100
    before = {row["sha256"]: row["split"] for row in all_rows(shards)}
    grown = make(table(tmp_path, rows_of(101)), tmp_path / "grown", split="hash")
    after = {row["sha256"]: row["split"] for row in all_rows(grown)}
    assert before.items() <= after.items()


def test_a_source_without_val_is_told_how_to_have_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = table(tmp_path, rows_of(60) + rows_of(10, "test", 60))
    assert make(source, tmp_path / "out").splits.keys() == {"train", "test"}
    assert "there is no val" in (said := capsys.readouterr().out)
    assert "--split val-of-train --overwrite" in said
    shards = make(source, tmp_path / "out", split="val-of-train", overwrite=True)
    assert "there is no val" not in capsys.readouterr().out
    counts = {split: of["images"] for split, of in shards.splits.items()}
    assert counts["train"] + counts["val"] == 60
    assert 1 <= counts["val"] <= 15  # of 60, a tenth
    assert counts["test"] == 10
    by_hash = make(source, tmp_path / "hash", split="hash")
    own = {row["id"] for row in shards.rows("val")}
    assert own == {row["id"] for row in by_hash.rows("val")} - {f"{n}.jpg" for n in range(60, 70)}


def test_one_split_for_all(tmp_path: Path) -> None:
    shards = make(table(tmp_path, rows_of(4)), tmp_path / "out", split="test")
    assert shards.splits == {"test": {"images": 4, "captions": 4}}


@pytest.mark.parametrize("order", ["baca", "abac"])
def test_classes_get_labels_by_name_in_whatever_order_they_come(tmp_path: Path, order: str) -> None:
    rows = [{"image": f"{n}.jpg", "class": name, "split": "val"} for n, name in enumerate(order)]
    shards = make(table(tmp_path, rows), tmp_path / "out", rows_per_shard=2)
    assert [*shards.classes.items()] == [("a", 0), ("b", 1), ("c", 2)]
    assert [(row["class_name"], row["label"]) for row in shards.rows("val")] == [
        (name, "abc".index(name)) for name in order
    ]


def test_a_label_that_the_source_gives_stays(tmp_path: Path) -> None:
    labelled = [("z", 4), ("y", None), ("x", None), ("z", None), ("w", 2)]
    rows = [
        {"image": f"{n}.jpg", "class": name, "label": label, "split": "val"}
        for n, (name, label) in enumerate(labelled)
    ]
    shards = make(table(tmp_path, rows), tmp_path / "out")
    assert shards.classes == {"w": 2, "z": 4, "x": 5, "y": 6}
    assert [row["label"] for row in shards.rows("val")] == [4, 6, 5, 4, 2]


# --- what is refused ----------------------------------------------------------------------------


GOOD = jpeg(1)
BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "truncated": ({"data": GOOD[:-80]}, "truncated JPEG"),
    "zero bytes": ({"data": b""}, "empty file"),
    "html": ({"data": b"<!DOCTYPE html><p>404"}, "not an image (begins with '<!DOCTYPE html')"),
    "bomb": ({"data": png(20_000, 20_000, 8, 2, b"")}, "400.0 megapixels is above the limit of 64"),
    "missing": ({"image": "sub/none.jpg"}, "missing file"),
    "folder": ({"image": "."}, "image path is the folder of the images itself"),
    "no image": ({"image": None}, "no image"),
    "image of another type": ({"image": 7}, "image is neither a path nor bytes (int)"),
    "parent": ({"image": "../odd.jpg"}, "image path leaves the folder"),
    "absolute": (
        {"image": "/etc/passwd"},
        "image path leaves the folder: say with --images where images may lie",
    ),
    "nul in path": ({"image": "a\0b"}, "image path 'a\\x00b' is not a path"),
    "empty caption": ({"caption": ""}, "caption 1 is empty"),
    "blank captions": ({"caption": ["", " \n "]}, "caption 1 is empty"),
    "nul in caption": ({"caption": "a\0b"}, "caption 1 holds a NUL byte"),
    "lone surrogate": ({"caption": "a\ud800b"}, "caption 1 is not UTF-8"),
    "caption of another type": ({"caption": ["fine", 7]}, "caption 2 is not text (int)"),
    "huge caption": ({"caption": "x" * 100_001}, "caption 1 has 100,001 characters, above 100,000"),
    "no words": ({"caption": None}, "no caption and no class name"),
    "empty class": ({"class": " "}, "class name is empty"),
    "label as a word": (
        {"label": "cat", "class": "dog"},
        "label 'cat' is not a whole number; for names use `--columns class_name=...`",
    ),
    "negative label": ({"label": -1}, "its label is -1, as where labels are withheld"),
    "huge label": ({"label": 2**31}, "label 2147483648 is outside 0 to 2147483647"),
    "unknown split": ({"split": "holdout"}, "unknown split 'holdout'"),
    "empty split": ({"split": None}, "split is empty"),
    "empty id": ({"id": ""}, "id is empty"),
    "duplicate id": ({"id": "0.jpg"}, "duplicate id"),  # of another picture
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_quarantined_with_their_reason(tmp_path: Path, name: str) -> None:
    row, reason = BAD_ROWS[name]
    assert bad_reason(tmp_path, **row) == reason


def test_a_flipped_jpeg_is_quarantined(tmp_path: Path) -> None:
    data = bytearray(jpeg(1, 256, 256))
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(range(200))
    assert bad_reason(tmp_path, data=bytes(data)).startswith("corrupt JPEG")


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert bad_reason(tmp_path, image="pipe.jpg") == "not a regular file"


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(5))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.jpg").symlink_to(secret)
    reason = bad_reason(folder, image="link.jpg")
    assert reason == "image path leaves the folder by a link: say with --images where to"


def test_a_class_with_two_labels_is_refused(tmp_path: Path) -> None:
    def row(n: int, name: str, label: int) -> dict[str, Any]:
        return {"image": f"{n}.jpg", "class": name, "label": label, "split": "train"}

    rows = [row(0, "cat", 3), row(1, "cat", 4), row(2, "dog", 3), row(3, "dog", 5)]
    shards = make(table(tmp_path, rows), tmp_path / "out", max_bad_fraction=0.5)
    assert shards.classes == {"cat": 3, "dog": 5}
    assert quarantined(tmp_path / "out") == {
        "1.jpg": "class `cat` has label 4 here and 3 before",
        "2.jpg": "label 3 is class `dog` here and `cat` before",
    }


def test_reasons_are_summed_up_by_kind(tmp_path: Path) -> None:
    rows = rows_of(6)
    rows[1]["caption"] = rows[2]["caption"] = ""
    (tmp_path / "3.jpg").write_bytes(b"")
    shards = make(table(tmp_path, rows), tmp_path / "out", max_bad_fraction=0.5)
    assert shards.manifest["quarantined"] == {"caption N is empty": 2, "empty file": 1}


def test_too_many_bad_records_stop_the_stage(tmp_path: Path) -> None:
    rows = rows_of(50)
    rows[7]["caption"] = ""
    source, out = table(tmp_path, rows), tmp_path / "out"
    with pytest.raises(DataError, match=r"1 of 50 records \(2 %\) are bad.*caption N is empty"):
        make(source, out)
    assert not out.exists()
    assert quarantined(tmp_path / ".out.partial") == {"7.jpg": "caption 1 is empty"}
    assert make(source, out, max_bad_fraction=0.02).splits["train"]["images"] == 49


def test_a_very_bad_source_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def source(path: str, options: object) -> Iterator[RawRecord]:
        nonlocal read
        for read in range(100_000):
            bad = BadRecord("bad") if read % 3 == 0 else jpeg(read)
            yield RawRecord(str(read), bad, ("caption",), split="train")

    monkeypatch.setitem(sys.modules["pipelines.sources.registry"].SOURCES, "folder", source)
    with pytest.raises(DataError, match=r"of 1,00. records"):
        make(tmp_path, tmp_path.parent / "out", format="folder")
    assert read < 1_500


def test_the_same_image_in_two_splits(tmp_path: Path) -> None:
    rows = rows_of(4) + rows_of(2, "val", 4) + rows_of(2, "test", 6)
    for copy, original in ((4, 1), (6, 1), (7, 2), (3, 0)):
        (tmp_path / f"{copy}.jpg").write_bytes(jpeg(original))
    source, out = table(tmp_path, rows), tmp_path / "out"
    with pytest.raises(DataError, match=r"`1.jpg` \(train\) and `4.jpg` \(val\)"):
        make(source, out)
    assert not out.exists()
    shards = make(source, out, on_leak="drop", rows_per_shard=2)
    assert [(row["id"], row["split"], row["captions"]) for row in all_rows(shards)] == [
        ("0.jpg", "train", ["caption 0", "caption 3"]),
        ("5.jpg", "val", ["caption 5"]),
        ("6.jpg", "test", ["caption 6"]),
        ("7.jpg", "test", ["caption 7"]),
    ]
    assert shards.splits["train"] == {"images": 1, "captions": 2}
    assert shards.manifest["counts"] == {
        "read": 8,
        "rows": 4,
        "united": 1,
        "left_out": {"same image in another split": 3},
        "quarantined": 0,
        "on_disk": {"read": {"row": 8}, "ignored": {}},
    }
    assert quarantined(out) == {
        "1.jpg": "same image as `6.jpg` (test)",
        "2.jpg": "same image as `7.jpg` (test)",
        "4.jpg": "same image as `6.jpg` (test)",
    }


def test_the_ledger_names_a_twin_in_the_split_that_keeps_it() -> None:
    ledger = Ledger()

    def row(name: str, split: str) -> dict[str, Any]:
        return {"id": name, "split": split, "sha256": "00" * 32, "group": None}

    ledger.add(row("a", "train"), 0)
    assert ledger.twin(row("a", "train")) is None
    ledger.add(row("b", "val"), 0)
    assert ledger.twin(row("c", "test")) == Twin("b", "val")
    assert ledger.twin(row("b", "val")) == Twin("a", "train")
    assert ledger.twin(row("b", "val"), better=True) is None
    ledger.add(row("c", "test"), 0)
    assert ledger.twin(row("a", "train"), better=True) == Twin("c", "test")


# --- running it again ---------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = table(tmp_path, rows_of(3)), tmp_path / "out"
    make(source, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    make(source, out)
    assert "nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_changed_image_is_noticed(tmp_path: Path) -> None:
    source, out = table(tmp_path, rows_of(3)), tmp_path / "out"
    digest = make(source, out).digest
    (tmp_path / "1.jpg").write_bytes(jpeg(77))
    with pytest.raises(DataError, match=r"other inputs \(fingerprint changed\).*--overwrite"):
        make(source, out)
    assert ShardSet.open(out).digest == digest
    assert make(source, out, overwrite=True).digest != digest


def test_equal_inputs_give_equal_shards(tmp_path: Path) -> None:
    source = table(tmp_path, rows_of(20))
    assert make(source, tmp_path / "a").digest == make(source, tmp_path / "b").digest


def test_other_things_are_never_overwritten(tmp_path: Path) -> None:
    source, out = table(tmp_path, rows_of(3)), tmp_path / "out"
    out.mkdir()
    make(source, out)  # an empty folder is fine
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"also holds `notes.txt`"):
        make(source, out, overwrite=True, rows_per_shard=5)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="holds no finished shards"):
        make(source, mine, overwrite=True)
    assert (mine / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_manifest_of_something_else_is_no_damaged_one(tmp_path: Path, overwrite: bool) -> None:
    source, mine = table(tmp_path, rows_of(3)), tmp_path / "mine"
    mine.mkdir()
    (mine / "manifest.json").write_text('{"project": "mine"}')
    (mine / "train-0.parquet").write_text("dear")
    with pytest.raises(DataError, match=r"manifest.json` is not of the format"):
        make(source, mine, overwrite=overwrite)
    assert (mine / "train-0.parquet").read_text() == "dear"


def test_a_failed_run_leaves_the_old_output_and_the_next_starts_over(tmp_path: Path) -> None:
    source, out = table(tmp_path, rows_of(30)), tmp_path / "out"
    digest = make(source, out).digest
    (tmp_path / "3.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        make(source, out, overwrite=True)
    assert ShardSet.open(out).digest == digest
    (tmp_path / "3.jpg").write_bytes(jpeg(3))
    assert make(source, out, overwrite=True).digest == digest
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    source, out = table(tmp_path, rows_of(20)), tmp_path / "out"
    program = """
import os, signal, sys
from pathlib import Path
from pipelines.shards import __main__ as shards
from pipelines.shards import work as sharding
take = sharding.Sharding.take
def fatal(self, name, outcome):
    take(self, name, outcome)
    if self.seen == 11:
        os.kill(os.getpid(), signal.SIGKILL)
sharding.Sharding.take = fatal
shards.run(shards.Args(sys.argv[1], Path(sys.argv[2]), rows_per_shard=2))
"""
    words = [sys.executable, "-c", program, str(source), str(out)]
    done = subprocess.run(words, check=False, capture_output=True, cwd=ROOT)
    assert done.returncode == -9
    assert not out.exists()
    assert (tmp_path / ".out.partial" / "train-00001.parquet").exists()
    assert make(source, out).splits["train"]["images"] == 20


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    source, out = table(tmp_path, rows_of(3)), tmp_path / "out"
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    other = os.open(partial, os.O_RDONLY)
    assert lock_descriptor(other)
    with pytest.raises(DataError, match="another process is writing"):
        make(source, out)
    os.close(other)
    assert make(source, out).splits["train"]["images"] == 3


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.shards.writer._Shard.close", full)
    with pytest.raises(DataError, match="No space left on device"):
        make(table(tmp_path, rows_of(3)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"format": "karpaty"}, "Did you mean `karpathy`"),
        ({"columns": ("capton=a",)}, "unknown field `capton`. Did you mean `caption`"),
        ({"columns": ("caption",)}, "pairs like caption=title"),
        ({"max_bad_fraction": 2}, "at most 1"),
        ({"rows_per_shard": 0}, "at least 1"),
    ],
)
def test_wrong_flags(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    source = table(tmp_path, rows_of(1))
    with pytest.raises((ConfigError, DataError), match=message):
        make(source, tmp_path / "out", **flags)


def test_no_source_and_no_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`.*none.json` does not exist"):
        make(tmp_path / "none.json", tmp_path / "out")
    (tmp_path / "empty.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"empty.csv` has no records"):
        make(tmp_path / "empty.csv", tmp_path / "out")


# --- memory -------------------------------------------------------------------------------------


def test_the_source_is_never_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is read, few files are in memory: a fixed number of bytes, or one file."""
    made = 0

    def records() -> Iterator[RawRecord]:
        nonlocal made
        for made in range(1, 10_000):
            yield RawRecord(str(made), jpeg(0), ("caption",))

    monkeypatch.setattr(sharding, "_WINDOW", 3 * len(jpeg(0)))
    taken = 0
    stream = sharding.checked(records(), "hash")
    for taken in range(1, 200):
        next(stream)
        assert made - taken <= 3
    stream.close()
    assert taken == 199


def test_memory_of_240_megabytes_of_images(tmp_path: Path) -> None:
    """The peak depends on the window alone: 135 MiB for 120, 240 or 600 MB of images."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    for n in range(60):  # data after the end is not decoded, so this is quick
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n) + bytes(4 * 2**20))
    program = """
import sys
from pathlib import Path
import torch, pyarrow.parquet, trainables.media.images
from pipelines.shards import __main__ as shards
from pipelines.shards import work as sharding
from pipelines.sources.registry import SOURCES
def peak():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024
before = peak()
sharding._WINDOW = 2**24
shards.run(shards.Args(sys.argv[1], Path(sys.argv[2])))
print("MiB:", peak() - before)
"""
    words = [sys.executable, "-c", program, str(table(tmp_path, rows_of(60))), str(tmp_path / "o")]
    done = subprocess.run(words, capture_output=True, check=True, text=True, cwd=ROOT)
    assert int(done.stdout.split("MiB:")[1]) < 200


# --- the shard set ------------------------------------------------------------------------------


def test_the_test_split_is_sealed(tmp_path: Path) -> None:
    shards = make(table(tmp_path, rows_of(2) + rows_of(2, "test", 2)), tmp_path / "out")
    with pytest.raises(DataError, match="sealed"):
        shards.rows("test")
    with pytest.raises(DataError, match="sealed"):
        shards.files("test")
    with pytest.raises(DataError, match="sealed"):
        shards.rows("test", seal="please")  # type: ignore[arg-type]
    assert [row["id"] for row in shards.rows("test", ["id"], SEAL)] == ["2.jpg", "3.jpg"]


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    shards = make(table(tmp_path, rows_of(2)), tmp_path / "out")
    with pytest.raises(DataError, match="Did you mean `train`"):
        shards.files("trian")
    with pytest.raises(DataError, match="Did you mean `captions`"):
        shards.rows("train", ["caption"])
    with pytest.raises(DataError, match="has no manifest"):
        ShardSet.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="not of the format"):
        ShardSet.open(tmp_path)


def test_a_flipped_byte_in_a_shard_is_found(tmp_path: Path) -> None:
    shards = make(table(tmp_path, rows_of(2)), tmp_path / "out")
    (file,) = shards.files("train")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="changed or damaged"):
        shards.rows("train")
    file.unlink()
    with pytest.raises(DataError, match="missing"):
        shards.rows("train")


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    shards = make(table(tmp_path, rows_of(2)), tmp_path / "out")
    manifest = json.loads(json.dumps(shards.manifest))
    manifest["shards"][0]["file"] = "../table.jsonl"
    with pytest.raises(DataError, match="missing"):
        dataclasses.replace(shards, manifest=manifest).files("train")


def test_a_moved_folder_reads_the_same(tmp_path: Path) -> None:
    shards = make(table(tmp_path, rows_of(2)), tmp_path / "out")
    rows = all_rows(shards)
    moved = ShardSet.open((tmp_path / "out").rename(tmp_path / "an other ö"))
    assert (moved.digest, all_rows(moved)) == (shards.digest, rows)
