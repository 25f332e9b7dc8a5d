"""The count adds up: everything on disk is a row, united, left out or quarantined, or ignored."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.shards.__main__ import Args, run
from tests.pictures import jpeg
from trainables.data.shards import ShardSet

BROKEN = jpeg(9)[:-80]


def put(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def counts_of(source: Path, out: Path, **flags: Any) -> dict[str, Any]:
    """The manifest's counts, which add up, and are those of the shards."""
    given: dict[str, Any] = {"max_bad_fraction": 0.9, **flags}
    run(Args(str(source), out, **given))
    shards = ShardSet.open(out)
    counts: dict[str, Any] = shards.manifest["counts"]
    left_out = sum(counts["left_out"].values())
    parts = counts["rows"] + counts["united"] + left_out + counts["quarantined"]
    assert counts["read"] == parts
    assert counts["rows"] == sum(split["images"] for split in shards.splits.values())
    assert counts["quarantined"] == sum(shards.manifest["quarantined"].values())
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    bad = [line for line in lines if "same image as" not in line]
    assert len(bad) == counts["quarantined"]
    return counts


def pictures(folder: Path, count: int) -> None:
    """Number 1 is broken, and the last is the first once more."""
    for n in range(count):
        put(folder / f"{n}.jpg", BROKEN if n == 1 else jpeg(n % (count - 1)))


def test_files_of_a_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pictures(source / "train" / "cat", 4)
    put(source / "train" / "dog" / "deep" / "5.PNG", jpeg(5))
    put(source / "val" / "cat" / "leak.jpg", jpeg(5))
    for name in ("notes.doc", "train/list.doc", "train/dog/deep/x.json", "val/cat/Makefile"):
        put(source / name, "x")
    for name in (".DS_Store", ".git/refs/a", "train/.git/b", "train/cat/._0.jpg", "val/cat/.x/y"):
        put(source / name, "x")
    counts = counts_of(source, tmp_path / "out", on_leak="drop", format="folder")
    on_disk = Counter(
        "hidden" if "/." in str(path.relative_to(source.parent)) else path.suffix.lower()
        for path in source.rglob("*")
        if path.is_file()
    )
    on_disk["no ending"] = on_disk.pop("")
    found = counts["on_disk"]
    assert Counter(found["read"]) + Counter(found["ignored"]) == on_disk
    assert found["ignored"] == {"hidden": 5, ".doc": 2, ".json": 1, "no ending": 1}
    assert sum(found["read"].values()) == counts["read"] == 6
    assert (counts["rows"], counts["united"], counts["quarantined"]) == (3, 1, 1)
    assert counts["left_out"] == {"same image in another split": 1}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_lines_of_a_table(tmp_path: Path, ending: str) -> None:
    pictures(tmp_path, 5)
    rows = [(n, f"caption {n}") for n in (0, 1, 2, 2, 3, 4, 0)] + [(2, ""), (7, "missing")]
    if ending == "csv":
        lines = ["image,caption", *(f"{n}.jpg,{text}" for n, text in rows), "one,cell,more"]
    else:
        lines = [json.dumps({"image": f"{n}.jpg", "caption": text}) for n, text in rows] + ["{"]
    put(tmp_path / f"t.{ending}", "\n".join(lines) + "\n\n")
    counts = counts_of(tmp_path / f"t.{ending}", tmp_path / "out", split="train")
    assert counts["read"] == len(lines) - (ending == "csv") == 10
    assert counts["on_disk"]["read"] == {"row": 10}
    assert (counts["rows"], counts["united"], counts["quarantined"]) == (3, 3, 4)


def test_members_of_tars(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pictures(tmp_path, 5)
    members = 0
    source.mkdir()
    for part in ("train-0", "val-0"):
        with tarfile.open(source / f"{part}.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("folder") if part else tarfile.TarInfo())
            members += 1
            for n in range(5):
                for suffix in ("jpg", "txt", "npy"):
                    data = (tmp_path / f"{n}.jpg").read_bytes() if suffix == "jpg" else b"words"
                    info = tarfile.TarInfo(f"{n}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                    members += 1
            hidden = tarfile.TarInfo("__meta.json")
            tar.addfile(hidden)
            members += 1
    columns = ("image=jpg", "caption=txt")
    counts = counts_of(source, tmp_path / "out", columns=columns, on_leak="drop")
    found = counts["on_disk"]
    assert found == {
        "read": {".jpg": 10, ".txt": 10},
        "ignored": {".npy": 10, "hidden": 2, "no ending": 2},
    }
    assert sum(found["read"].values()) + sum(found["ignored"].values()) == members
    assert counts["read"] == 10
    assert (counts["rows"], counts["united"], counts["quarantined"]) == (3, 1, 2)
    assert counts["left_out"] == {"same image in another split": 4}


def test_lines_of_flickrs_captions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    pictures(source / "images", 6)
    lines = [f"{n}.jpg#{k}\tcaption {k} of {n}" for n in range(6) for k in range(3)]
    put(source / "Flickr8k.token.txt", "\n".join(lines) + "\n\n")
    for split, members in (("train", (0, 1, 2, 5)), ("dev", (3,))):
        put(source / f"{split}Images.txt", "".join(f"{n}.jpg\n" for n in members))
    counts = counts_of(source, tmp_path / "out")
    ignored = {"image that no record names": 1}  # 4.jpg, which is in no list
    assert counts["on_disk"] == {"read": {"line": len(lines)}, "ignored": ignored}
    assert counts["read"] == 6
    assert (counts["rows"], counts["united"], counts["quarantined"]) == (3, 1, 1)
    assert counts["left_out"] == {"in no split list": 1}


def test_entries_of_coco(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    images: list[Any] = [{"id": n, "file_name": f"{n}.jpg"} for n in range(5)] + [{"id": 9}]
    captions: list[Any] = [{"image_id": n % 7, "caption": f"caption {n}"} for n in range(14)]
    captions += [{"image_id": 0}, 7]
    path = tmp_path / "captions_train2014.json"
    put(path, json.dumps({"images": images, "annotations": captions}))
    counts = counts_of(path, tmp_path / "out")
    found = counts["on_disk"]
    assert found["read"] == {"annotation": 12, "image": 6}
    assert found["ignored"] == {"annotation of no image": 4}
    assert len(captions) == 12 + 4
    assert counts["read"] == 6 + 2  # the images, and the bad annotations
    assert (counts["rows"], counts["united"], counts["quarantined"]) == (3, 1, 4)


def test_entries_of_karpathy_and_of_coop(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    entries: list[Any] = [
        {"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": f"caption {n}"}]}
        for n in range(5)
    ] + [{"filename": "x.jpg"}]
    put(tmp_path / "dataset.json", json.dumps({"images": entries}))
    labelled = [[f"{n}.jpg", 0, "cat"] for n in range(5)] + ["?"]
    put(tmp_path / "split.json", json.dumps({"train": labelled, "val": [], "test": []}))
    for name in ("dataset", "split"):
        counts = counts_of(tmp_path / f"{name}.json", tmp_path / name)
        assert counts["read"] == 6
        assert (counts["rows"], counts["united"], counts["quarantined"]) == (3, 1, 2)


def test_the_account_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "source" / "cat", 4)
    put(tmp_path / "source" / "cat" / "x.doc", "x")
    (tmp_path / "source" / "dog").mkdir()
    counts_of(tmp_path / "source", tmp_path / "out", split="train")
    said = capsys.readouterr().out
    assert (
        "4 records read = 2 rows + 1 united with their picture's row + 0 left out + 1 quarantined"
    ) in said
    assert "ignored: .doc (1)" in said


def test_images_that_no_row_names(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("images", "elsewhere"):
        pictures(source / folder, 5)
    rows = [f"{folder}/{n}.jpg,disc {n}\n" for n in (0, 1) for folder in ("images", "elsewhere")]
    put(source / "said.csv", "image,caption\n" + "".join(rows[:3]) + rows[0])
    counts = counts_of(source, tmp_path / "out", split="train")
    assert counts["on_disk"]["ignored"] == {"image that no record names": 3 + 4}
