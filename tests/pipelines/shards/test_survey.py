"""What is seen of a source is said, before anything is written and in bounded time."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.shards import inventory, survey
from pipelines.shards.__main__ import Args, run
from pipelines.sources.base import Options, RawRecord
from pipelines.sources.registry import SOURCES
from tests.pictures import jpeg
from trainables.data.shards import ShardSet
from trainables.errors import DataError


def put(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def pictures(folder: Path, count: int, first: int = 0) -> None:
    for n in range(first, first + count):
        put(folder / f"{n}.jpg", jpeg(n))


def tar(path: Path, parts: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in parts:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def said(source: Path | str, capsys: pytest.CaptureFixture[str], **flags: Any) -> list[str]:
    """The lines of a dry run, which leaves everything as it was."""
    home = Path(source).parent
    before = sorted((str(path), path.stat().st_mtime_ns) for path in home.rglob("*"))
    run(Args(str(source), dry_run=True, **flags))
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in home.rglob("*"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "nothing was written, as `--dry-run` says"
    assert lines[-1].startswith("next: cliptune shards --source ")
    return lines[:-2]


def test_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path, 3)
    rows = ["0.jpg,a red disc,train", "1.jpg,a blue disc,val", "none.jpg,lost,val", "..,up,val"]
    path = put(tmp_path / "t.csv", "\n".join(["image,caption,split", *rows]))
    assert said(path, capsys) == [
        "format: table, its name ends in `.csv`",
        "splits: by the split column",
        'first: `0.jpg`: train; 1 caption: "a red disc"',
        'first: `1.jpg`: val; 1 caption: "a blue disc"',
        f'first: `none.jpg`: val; 1 caption: "lost"; bad: missing file `{tmp_path / "none.jpg"}`',
        "records: 4 in all; by split: 3 val, 1 train",
        f"bad: 2 of these records, such as `none.jpg`: missing file `{tmp_path / 'none.jpg'}`",
    ]


def test_folders_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    pictures(source / "train" / "cat", 2)
    pictures(source / "train" / "dog" / "deep", 1, 2)
    pictures(source / "valid" / "cat", 1, 3)
    for name in ("train/cat/a.doc", "valid/b.DOC", "train/.git/c", ".DS_Store"):
        put(source / name, "x")
    assert said(source, capsys) == [
        "format: folder, it holds folders, such as `train`, and no table and no tar",
        "files: 8: 4 .jpg, 2 hidden, 2 .doc",
        "not read: 2 hidden, 2 .doc",
        "splits: by name, train (train), val (valid)",
        "first: `train/cat/0.jpg`: train; class `cat` (label 0)",
        "first: `train/cat/1.jpg`: train; class `cat` (label 0)",
        "first: `train/dog/deep/2.jpg`: train; class `dog` (label 1)",
        "records: 4 in all; by split: 3 train, 1 val; of 2 classes",
    ]


def test_tars_with_splits_in_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train-0", "train-1", "val-0"):
        parts = [("0.jpg", jpeg(0)), ("0.json", b'{"caption": "a", "text": "b"}'), ("0.npy", b"x")]
        tar(tmp_path / "source" / f"{part}.tar", parts)
    put(tmp_path / "source" / "sizes.json", "{}")
    put(tmp_path / "source" / "loose.jpg", jpeg(0))
    columns = ("image=jpg", "caption=txt")
    assert said(tmp_path / "source", capsys, columns=columns) == [
        "format: webdataset, it holds `train-0.tar`",
        "files: 5: 3 .tar, 1 .jpg, 1 .json",
        "read: train-0.tar, train-1.tar, val-0.tar",
        "not read: 1 .jpg, 1 .json",
        "splits: by name, train (train-0.tar, train-1.tar), val (val-0.tar)",
        "first: `train-0/0`: train; bad: no caption and no class name",
        "first: `train-1/0`: train; bad: no caption and no class name",
        "first: `val-0/0`: val; bad: no caption and no class name",
        "records: 3 in all; by split: 2 train, 1 val",
        "bad: 3 of these records, such as `train-0/0`: no caption and no class name",
        "not read: members of these, 3 .json, 3 .npy",
    ]


def test_a_tar_in_which_one_of_two_keys_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.dumps({"caption": "a disc", "text": "SHOP", "split": "val"}).encode()
    tar(tmp_path / "x.tar", [("0.jpg", jpeg(0)), ("0.json", told)])
    assert said(tmp_path / "x.tar", capsys) == [
        "format: webdataset, its name ends in `.tar`",
        "splits: by `split` in each sample's `.json`",
        'first: `0`: val; 1 caption: "a disc"',
        "records: 1 in all; by split: 1 val",
        "note: caption by `caption`, not by `text` (1)",
    ]


def test_coco_and_flickr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train2014", "val2014"):
        value = {
            "images": [{"id": 1, "file_name": f"{part}.jpg"}],
            "annotations": [{"image_id": 1, "caption": "word " * 20}] * 5,
        }
        put(tmp_path / "coco" / f"captions_{part}.json", json.dumps(value))
        put(tmp_path / part / f"{part}.jpg", jpeg(0))
    words = ", ".join(['"' + ("word " * 12)[:57] + '..."'] * 3)
    assert said(tmp_path / "coco", capsys) == [
        "format: coco, it holds `captions_train2014.json`",
        "files: 2: 2 .json",
        "read: captions_train2014.json, captions_val2014.json",
        "splits: by name, train (captions_train2014.json), val (captions_val2014.json)",
        f"first: `train2014.jpg`: train; 5 captions: {words}, ...",
        f"first: `val2014.jpg`: val; 5 captions: {words}, ...",
        "records: 2 in all; by split: 1 train, 1 val",
    ]
    source = tmp_path / "flickr"
    pictures(source / "images", 2)
    put(source / "x.token.txt", "0.jpg#0\ta\n0.jpg#1\tb\n1.jpg#0\tc\n")
    put(source / "x.devImages.txt", "0.jpg\n1.jpg\n")
    put(source / "readme.txt", "x")
    assert said(source, capsys) == [
        "format: flickr_token, it holds `x.token.txt`",
        "files: 5: 3 .txt, 2 .jpg",
        "read: x.devImages.txt, x.token.txt",
        "not read: 1 .txt",
        "splits: by name, val (x.devImages.txt)",
        'first: `0.jpg`: val; 2 captions: "a", "b"',
        'first: `1.jpg`: val; 1 caption: "c"',
        "records: 2 in all; by split: 2 val",
    ]


def test_classes_of_coco_as_roboflow_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, part in enumerate(("train", "valid")):
        pictures(tmp_path / "coco" / part, 1, n)
        value = {
            "images": [{"id": n, "file_name": f"{n}.jpg"}],
            "annotations": [{"image_id": n, "category_id": 1, "area": 2.0}],
            "categories": [{"id": 1, "name": "cup"}],
        }
        put(tmp_path / "coco" / part / "_annotations.coco.json", json.dumps(value))
    assert said(tmp_path / "coco", capsys, format="coco") == [
        "format: coco, as `--format` says",
        "files: 4: 2 .jpg, 2 .json",
        "read: train/_annotations.coco.json, valid/_annotations.coco.json",
        "splits: by name, train (train/_annotations.coco.json), val (valid/_annotations.coco.json)",
        "first: `0.jpg`: train; class `cup` (label 0)",
        "first: `1.jpg`: val; class `cup` (label 0)",
        "records: 2 in all; by split: 1 train, 1 val; of 1 class",
    ]


def test_json_parquet_and_a_saved_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path, 2)
    entry = {"filename": "0.jpg", "split": "restval", "sentences": [{"raw": "a"}]}
    path = put(tmp_path / "dataset.json", json.dumps({"images": [entry]}))
    assert said(path, capsys)[:3] == [
        "format: karpathy, its `images` have `sentences`",
        "splits: by `split` of each entry",
        'first: `0.jpg`: train; 1 caption: "a"',
    ]
    path = put(tmp_path / "split.json", json.dumps({"train": [["0.jpg", 3, "cat"]]}))
    assert said(path, capsys)[:3] == [
        "format: zhou, it lists images at `train`",
        "splits: by the lists of the JSON",
        "first: `0.jpg`: train; class `cat` (label 3)",
    ]
    rows = {"image": [jpeg(0), jpeg(1)], "caption": ["a", "b"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    assert said(tmp_path / "t.parquet", capsys, split="hash") == [
        "format: table, its name ends in `.parquet`",
        "splits: 80/10/10 by each image's hash, as `--split` says",
        'first: `row 1`: 1 caption: "a"',
        'first: `row 2`: 1 caption: "b"',
        "records: 2 in all",
    ]
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    capsys.readouterr()
    lines = said(tmp_path / "saved", capsys, split="val")
    assert lines[0].startswith("format: huggingface, it holds `")
    assert not [line for line in lines if line.startswith("not read")]
    assert lines[2:] == [
        "splits: all val, as `--split` says",
        'first: `train-1`: 1 caption: "a"',
        'first: `train-2`: 1 caption: "b"',
        "records: 2 in all",
    ]


def test_words_beside_images_in_files_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, first in (("train", 0), ("test", 2)):
        pictures(tmp_path / "a" / split, 2, first)
        for n in (first, first + 1):
            put(tmp_path / "a" / split / f"{n}.txt", f"words {n}")
    put(tmp_path / "a" / "train" / "x.doc", "x")
    assert said(tmp_path / "a", capsys, format="sidecar") == [
        "format: sidecar, as `--format` says",
        "files: 9: 4 .jpg, 4 .txt, 1 .doc",
        "read: test/2.txt, test/3.txt, train/0.txt and 1 more",
        "not read: 1 .doc",
        "splits: by name, test (test), train (train)",
        'first: `test/2.jpg`: test; 1 caption: "words 2"',
        'first: `test/3.jpg`: test; 1 caption: "words 3"',
        'first: `train/0.jpg`: train; 1 caption: "words 0"',
        "records: 4 in all; by split: 2 test, 2 train",
    ]
    tar(tmp_path / "b" / "00000.tar", [("0.jpg", jpeg(0)), ("0.txt", b"a disc")])
    put(tmp_path / "b" / "00000_stats.json", "{}")
    assert said(tmp_path / "b", capsys) == [
        "format: img2dataset, it holds `*_stats.json`, as img2dataset writes them",
        "files: 2: 1 .tar, 1 .json",
        "read: 00000.tar",
        "not read: 1 .json",
        "splits: 80/10/10 by each image's hash, the source tells none",
        'first: `0`: 1 caption: "a disc"',
        "records: 1 in all",
    ]
    pictures(tmp_path / "c" / "images" / "001.Gull", 1)
    put(tmp_path / "c" / "text" / "001.Gull" / "0.txt", "a gull\nit flies\n")
    assert said(tmp_path / "c", capsys)[4:] == [
        'first: `001.Gull/0.jpg`: class `Gull` (label 0); 2 captions: "a gull", "it flies"',
        "records: 1 in all; of 1 class",
    ]


# --- bounds -------------------------------------------------------------------------------------


def test_the_looking_ends_after_so_many_files_and_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "FILES", 5)
    monkeypatch.setattr(survey, "RECORDS", 4)
    pictures(tmp_path / "source" / "cat", 9)
    (tmp_path / "source" / "dog").mkdir()
    lines = said(tmp_path / "source", capsys)
    assert lines[1] == "files: at least 5: 5 .jpg"
    assert lines[-1] == "records: 4, and maybe more; of 1 class"


def test_the_looking_ends_after_so_many_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a JSON of gigabytes is read before its first record."""
    ended = Event()

    def slow(source: str, options: Options) -> Iterator[RawRecord]:
        yield RawRecord("a", jpeg(0), ("word",))
        ended.wait(30)

    monkeypatch.setattr(survey, "SECONDS", 0.2)
    monkeypatch.setitem(SOURCES, "folder", slow)
    pictures(tmp_path / "source" / "cat", 1)
    (tmp_path / "source" / "dog").mkdir()
    assert said(tmp_path / "source", capsys)[-3:] == [
        "splits: 80/10/10 by each image's hash, the source tells none",
        'first: `a`: 1 caption: "word"',
        "records: 1 within 0.2 s, and maybe more",
    ]
    ended.set()


def test_the_bytes_of_a_thousand_images_are_not_held(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", [("0.jpg", jpeg(0)), ("0.txt", b"word")])
    (record,) = SOURCES["webdataset"](str(tmp_path / "x.tar"), Options())
    assert record.image == jpeg(0)
    assert survey._bare(record).image == b""
    assert survey._bare(record).captions == record.captions


# --- what else is said --------------------------------------------------------------------------


def test_what_reading_refuses_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "image,capton\n0.jpg,x\n")
    with pytest.raises(DataError, match="unknown column `capton`"):
        run(Args(str(path), dry_run=True))
    pictures(tmp_path / "source" / "images", 1)
    put(tmp_path / "source" / "captions.json", "[1]")
    with pytest.raises(DataError, match="it is not guessed whether the folders are classes"):
        run(Args(str(tmp_path / "source"), dry_run=True))


def test_strangers_names_do_not_move_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"image": "0.jpg", "id": "a\x1b[2J", "caption": "\x1b[31mred"}
    path = put(tmp_path / "t.jsonl", json.dumps(row))
    lines = said(path, capsys)
    assert not [line for line in lines if "\x1b" in line]
    assert any("a\\x1b[2J" in line for line in lines)


def test_the_command_that_it_ends_with_is_that_without_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "an other"
    pictures(home / "images", 2)
    path = put(home / "t.csv", "file,words,more\n0.jpg,a,x\n1.jpg,b,x\n")
    flags: dict[str, Any] = {
        "images": home / "images", "columns": ("image=file", "caption=words"), "split": "train",
    }  # fmt: skip
    run(Args(str(path), tmp_path / "out", dry_run=True, **flags))
    *_, last = capsys.readouterr().out.splitlines()
    words = shlex.split(last.removeprefix("next: cliptune shards "))
    assert words == [
        *("--source", str(path), "--out", str(tmp_path / "out"), "--images", str(home / "images")),
        *("--columns", "image=file", "caption=words", "--split", "train"),
    ]
    assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= {
        field.name for field in fields(Args)
    }
    assert not (tmp_path / "out").exists()


def test_a_real_run_begins_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    pictures(source / "cat", 5)
    (source / "dog").mkdir()
    put(source / "cat" / "x.doc", "x")
    run(Args(str(source), out, split="train"))
    assert capsys.readouterr().out.splitlines()[:8] == [
        "format: folder, it holds folders, such as `cat`, and no table and no tar",
        "files: 6: 5 .jpg, 1 .doc",
        "not read: 1 .doc",
        "splits: all train, as `--split` says",
        "first: `cat/0.jpg`: class `cat` (label 0)",
        "first: `cat/1.jpg`: class `cat` (label 0)",
        "first: `cat/2.jpg`: class `cat` (label 0)",
        "train         5 images          0 captions",
    ]
    assert ShardSet.open(out).splits["train"]["images"] == 5


def test_words_that_the_run_refuses_are_bad_here_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path, 3)
    rows = [{"image": f"{n}.jpg", "caption": text} for n, text in enumerate(("a", 12, " "))]
    path = put(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert said(path, capsys)[-2:] == [
        "records: 3 in all",
        "bad: 2 of these records, such as `1.jpg`: caption 1 is not text (int)",
    ]
    with pytest.raises(DataError, match=r"2 of 3 records .* such as `1.jpg`: caption 1 is not te"):
        run(Args(str(path), tmp_path / "out"))


def test_a_source_without_a_record_is_an_error_here_too(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "image,caption\n")
    with pytest.raises(DataError, match=r"t.csv` has no records"):
        run(Args(str(path), tmp_path / "out", dry_run=True))


def test_a_refusal_keeps_the_values_of_its_first_record(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    path = put(tmp_path / "t.csv", "image,caption,label\n0.jpg,x,-1\n1.jpg,y,-1\n")
    with pytest.raises(
        DataError, match=r"its label is -1, as .* \(2\), such as `0.jpg`: its label"
    ):
        run(Args(str(path), tmp_path / "out"))
