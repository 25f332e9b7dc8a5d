"""Every format on a small source of its own, with the faults that its files can have."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shards.records import check
from pipelines.sources import huggingface, json_stream
from pipelines.sources.base import (
    BadRecord,
    Options,
    RawRecord,
    inside,
    parse_columns,
    split_of_name,
)
from pipelines.sources.gather import Gather
from pipelines.sources.registry import SOURCES, source_format
from tests import ROOT
from tests.pictures import draw, jpeg
from trainables.errors import DataError

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")


def read(source: Path | str, name: str | None = None, **options: Any) -> list[RawRecord]:
    """All records; with the format left out, it has to be guessed rightly."""
    columns = parse_columns(options.pop("columns", ()))
    return list(
        SOURCES[source_format(str(source), name)](str(source), Options(columns=columns, **options))
    )


def good(record: RawRecord) -> dict[str, Any]:
    """The record's row once checked, without its image and its group."""
    checked = check(record, "source")
    assert not isinstance(checked, BadRecord), checked.reason
    without = ("image", "width", "height", "sha256", "group")
    return {k: v for k, v in checked.row.items() if k not in without}


def reason(record: RawRecord) -> str:
    checked = check(record, "source")
    assert isinstance(checked, BadRecord)
    return checked.reason


def row(name: str, *captions: str, split: str = "train", **more: Any) -> dict[str, Any]:
    full = {"id": name, "captions": list(captions), "label": None, "class_name": None}
    return full | {"split": split, "classes": None} | more


def dump(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


# --- Karpathy -----------------------------------------------------------------------------------


def karpathy(*images: dict[str, Any]) -> dict[str, Any]:
    return {"images": list(images), "dataset": "flickr8k"}


def test_karpathy(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg", "b.jpg")
    texts = [{"raw": "one .", "tokens": ["one"]}, {"raw": "two"}]
    source = dump(
        tmp_path / "any name.json",
        karpathy(
            {"filename": "a.jpg", "split": "train", "sentences": texts},
            {"filename": "b.jpg", "split": "restval", "sentences": texts[:1]},
        ),
    )
    assert list(map(good, read(source))) == [row("a.jpg", "one .", "two"), row("b.jpg", "one .")]


def test_karpathy_of_coco_has_folders(tmp_path: Path) -> None:
    draw(tmp_path / "pictures" / "val2014", "a.jpg")
    entry = {
        "filepath": "val2014",
        "filename": "a.jpg",
        "split": "test",
        "sentences": [{"raw": "x"}],
    }
    source = dump(tmp_path / "dataset_coco.json", karpathy(entry))
    (record,) = read(source, images=tmp_path / "pictures")
    assert good(record) == row("val2014/a.jpg", "x", split="test")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"split": "train", "sentences": []}, "no `filename`"),
        ({"filename": "a.jpg", "split": "train"}, "no `sentences`"),
        ({"filename": "a.jpg", "split": "train", "sentences": [{}]}, "no `raw`"),
        ("a.jpg", "not an image entry of Karpathy's layout"),
        ({"filename": 3, "sentences": []}, "not an image entry of Karpathy's layout"),
        ({"filename": "../a.jpg", "sentences": [{"raw": "x"}]}, "image path leaves the folder"),
        ({"filename": "a.jpg", "sentences": [{"raw": None}]}, "caption 1 is not text (NoneType)"),
        ({"filename": "a.jpg", "sentences": [{"raw": "x"}], "split": 3}, "split is not text (int)"),
    ],
)  # fmt: skip
def test_odd_karpathy_entries(tmp_path: Path, entry: Any, why: str) -> None:
    source = dump(tmp_path / "dataset.json", karpathy(entry))
    assert [reason(record) for record in read(source, "karpathy")] == [why]


# --- COCO ---------------------------------------------------------------------------------------


def coco(images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {"info": {"year": 2014}, "images": images, "licenses": [], "annotations": annotations}


def test_coco_folder(tmp_path: Path) -> None:
    draw(tmp_path / "train2014", "a.jpg", "b.jpg")
    draw(tmp_path / "val2014", "c.jpg", first=2)
    train = coco(
        [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        [{"image_id": n, "caption": text} for n, text in ((2, "of b"), (1, "of a"), (2, "b"))],
    )
    val = coco([{"id": 1, "file_name": "c.jpg"}], [{"image_id": 1, "caption": "of c"}])
    dump(tmp_path / "annotations" / "captions_train2014.json", train)
    source = dump(tmp_path / "annotations" / "captions_val2014.json", val)
    assert list(map(good, read(tmp_path / "annotations"))) == [
        row("a.jpg", "of a"), row("b.jpg", "of b", "b"), row("c.jpg", "of c", split="val")
    ]  # fmt: skip
    assert list(map(good, read(source))) == [row("c.jpg", "of c", split="val")]
    assert list(map(good, read(source, images=tmp_path))) == [row("c.jpg", "of c", split="val")]


def test_odd_coco_entries(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.jpg")
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3}]
    notes = [{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": None}, {"caption": "x"}, 5]
    records = read(dump(tmp_path / "captions_val2014.json", coco(images, notes)))
    assert [(r.id, reason(r)) for r in records if r.id != "a.jpg"] == [
        ("annotation 2", "`caption` is not text"),
        ("annotation 3", "no `image_id`"),
        ("annotation 4", "`caption` is not text"),
        ("b.jpg", "no caption and no class name"),
        ("image 3", "no `id` or no `file_name`"),
    ]


# --- Flickr tokens ------------------------------------------------------------------------------

TOKENS = b"a.jpg#0\tfirst of a\na.jpg#1\tsecond\nb.jpg#0\tof b\nc.jpg.1#0\tlost\nc.jpg#0\tcaf\xe9\n"


def test_flickr_tokens_with_lists(tmp_path: Path) -> None:
    draw(tmp_path / "Flicker8k_Dataset", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "Flickr8k.token.txt").write_bytes(TOKENS)
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("b.jpg\r\n")
    (tmp_path / "Flickr_8k.testImages.txt").write_text("c.jpg\n")
    options = Options()
    for source in (tmp_path, tmp_path / "Flickr8k.token.txt"):
        a, b, c = SOURCES[source_format(str(source), None)](str(source), options)
        assert [good(a), good(b)] == [
            row("a.jpg", "first of a", "second"),
            row("b.jpg", "of b", split="val"),
        ]
        assert c.split == "test"
        assert reason(c).startswith("not UTF-8 (`iconv -f WINDOWS-1252 -t UTF-8 ")
    assert options.tally.left_out == {"in no split list": 2}  # the line with `.jpg.1`, twice read


def test_flickr30k_lists_have_no_suffix_and_may_be_absent(tmp_path: Path) -> None:
    draw(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "results.token").write_text("1.jpg#0\tone\n2.jpg#0\ttwo\n")
    assert [record.split for record in read(tmp_path)] == [None, None]
    (tmp_path / "train.txt").write_text("1\n")
    (tmp_path / "val.txt").write_text("2\n")
    assert [record.split for record in read(tmp_path)] == ["train", "val"]
    (tmp_path / "test.txt").write_text("2\n")
    with pytest.raises(DataError, match="`2` is in two split lists: test and val"):
        read(tmp_path)


# --- tables -------------------------------------------------------------------------------------


def write_csv(path: Path, *rows: list[str], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def test_csv_with_a_row_a_caption(tmp_path: Path) -> None:
    draw(tmp_path / "images", "a.jpg", "b.jpg")
    rows = [["a.jpg", "one"], ["a.jpg", 'two, "quoted"\nline'], ["b.jpg", "three"]]
    source = write_csv(tmp_path / "captions.csv", ["image", "caption"], *rows)
    a, b = read(source)
    assert a.captions == ("one", 'two, "quoted"\nline')
    assert good(b)["captions"] == ["three"]


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [("csv", "|"), ("tsv", "\t"), ("txt", ","), ("csv", ";")]
)
def test_delimiters(tmp_path: Path, suffix: str, delimiter: str) -> None:
    draw(tmp_path, "a.jpg")
    rows = [["image_name", "comment", "split"], ["a.jpg", "x, y", "dev"]]
    source = write_csv(tmp_path / f"t.{suffix}", *rows, delimiter=delimiter)
    assert list(map(good, read(source))) == [row("a.jpg", "x, y", split="val")]


def test_csv_with_classes(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg")
    header = ["file_name", "label", "class_name", "split"]
    source = write_csv(tmp_path / "t.csv", header, ["a.jpg", "3", "cat", "test"])
    assert list(map(good, read(source))) == [row("a.jpg", split="test", label=3, class_name="cat")]


def test_a_bad_line_of_a_csv_costs_itself_alone(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{n}.jpg" for n in range(1, 8)))
    lines = [b"1.jpg,fine", b"2.jpg,caf\xe9", b"3.jpg,a,b", b"", b"4.jpg", b'5.jpg,"x"y']
    lines = [b"image,caption", *lines, b"6.jpg,a\0b", b"7.jpg,fine"]
    (tmp_path / "t.csv").write_bytes(b"\n".join(lines))
    outcome = [check(record, "source") for record in read(tmp_path / "t.csv")]
    reasons = [o.reason if isinstance(o, BadRecord) else "fine" for o in outcome]
    assert [one.partition(" (`iconv")[0] for one in reasons] == [
        "fine",
        "not UTF-8",
        "3 cells where the header has 2",
        "1 cells where the header has 2",
        "malformed CSV (',' expected after '\"')",
        "caption 1 holds a NUL byte",
        "fine",
    ]
    assert [r.id for r in read(tmp_path / "t.csv")][2:5] == ["row 4", "row 6", "row 7"]


def test_a_stray_quote_counts_every_line_that_it_swallows(tmp_path: Path) -> None:
    lines = ["image,caption", 'a.jpg,"never closed', *(f"{n}.jpg,fine" for n in range(50))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    records = read(tmp_path / "t.csv")
    assert len(records) == 51
    assert reason(records[50]).startswith("malformed CSV")


def test_jsonl(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.jpg")
    lines = [
        b'\xef\xbb\xbf{"image": "a.jpg", "captions": ["x", "y"]}',
        b'{"image": "b.jpg", "captions": ["z"], "split": "test"}',
        b"",
        b'{"image": "b.jpg"',
        b"[1]",
        b'{"image": "b.jpg", "captoin": "x"}',
        b'{"captions": "x"}',
        b'{"image": "b.jpg", "captions": "caf\xe9"}',
        b"[" * 100_000,
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    records = read(tmp_path / "t.jsonl")
    assert records[0].captions == ("x", "y")
    assert good(records[1]) == row("b.jpg", "z", split="test")
    assert [(r.id, reason(r).partition(" (`iconv")[0]) for r in records[2:]] == [
        ("row 4", "malformed JSON (Expecting ',' delimiter: line 1 column 18 (char 17))"),
        ("row 5", "not a JSON object"),
        ("row 6", reason(records[4])),
        ("row 7", f"`{tmp_path}/t.jsonl` has no image column; name it with `--columns image=...`."),
        ("row 8", "not UTF-8"),
        ("row 9", reason(records[7])),
    ]
    assert "unknown column `captoin`. Did you mean `caption`?" in reason(records[4])


@pytest.mark.parametrize("kind", ["bytes", "paths", "hugging face"])
def test_parquet(tmp_path: Path, kind: str) -> None:
    draw(tmp_path, "0.jpg", "1.jpg")
    cells: dict[str, list[Any]] = {
        "bytes": [jpeg(0), jpeg(1)],
        "paths": ["0.jpg", "1.jpg"],
        "hugging face": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(2)],
    }
    columns = {"img_id": ["a", "b"], "image": cells[kind], "captions": [["x", "y"], ["z"]]}
    pq.write_table(pa.table({**columns, "split": ["train", "val"]}), tmp_path / "t.parquet")
    records = read(tmp_path / "t.parquet")
    assert list(map(good, records)) == [row("a", "x", "y"), row("b", "z", split="val")]


def test_a_row_a_caption_that_repeats_the_bytes_is_one_record_an_image(tmp_path: Path) -> None:
    rows = [
        {"image": jpeg(n), "caption": f"caption {m} of {n}", "split": "train", "id": f"c{n}{m}"}
        for n in (0, 1, 2)
        for m in range(3)
    ]
    for name, columns in (("named", ["id"]), ("unnamed", [])):
        kept = [{k: v for k, v in one.items() if k != "id" or columns} for one in rows]
        pq.write_table(pa.Table.from_pylist(kept), tmp_path / f"{name}.parquet")
        found = read(tmp_path / f"{name}.parquet")
        assert [good(record)["captions"] for record in found] == [
            [f"caption {m} of {n}" for m in range(3)] for n in range(3)
        ]
        assert len({record.id for record in found}) == 3
    rows[4]["split"] = "test"  # a leak is for whoever writes shards to tell
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "leak.parquet")
    assert len(read(tmp_path / "leak.parquet")) == 5


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    text = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"x\xff"))
    pq.write_table(pa.table({"image": [jpeg(0), jpeg(1)], "caption": text}), tmp_path / "t.parquet")
    fine, bad = read(tmp_path / "t.parquet")
    assert good(fine)["captions"] == ["x"]
    assert reason(bad) == "not UTF-8"


def test_damaged_parquet_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(0)], "caption": ["x"]}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    for part in (b"", data[: len(data) // 2], data[:100] + data[900:]):
        (tmp_path / "t.parquet").write_bytes(part)
        with pytest.raises(DataError, match="not valid Parquet"):
            read(tmp_path / "t.parquet")


def test_several_tables_tell_their_splits(tmp_path: Path) -> None:
    for n, split in enumerate(("train-00000-of-00002", "train-00001-of-00002", "validation-00000")):
        rows = {"image": [jpeg(n)], "text": ["x"]}
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    assert [good(record)["split"] for record in read(tmp_path)] == ["train", "train", "val"]
    assert len({record.id for record in read(tmp_path)}) == 3
    write_csv(tmp_path / "more.csv", ["image", "caption"])
    with pytest.raises(DataError, match=r"tables of one kind, found .csv and .parquet"):
        read(tmp_path, "table")


def test_unknown_and_doubtful_columns(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg")
    source = write_csv(tmp_path / "t.csv", ["image", "captoin"], ["a.jpg", "x"])
    with pytest.raises(DataError, match=r"unknown column `captoin`. Did you mean `caption`\?"):
        read(source)
    with pytest.raises(DataError, match=r"unknown column `captain`. Did you mean `captoin`\?"):
        read(source, columns=["image=image", "caption=captain"])
    assert good(read(source, columns=["image=image", "caption=captoin"])[0])["captions"] == ["x"]
    source = write_csv(tmp_path / "t.csv", ["image", "filename", "caption"], ["a.jpg", "b", "x"])
    with pytest.raises(DataError, match="`image` and `filename` both name the image"):
        read(source)
    assert read(source, columns=["image=image", "caption=caption"])[0].id == "a.jpg"
    with pytest.raises(DataError, match="has no image column"):
        read(write_csv(tmp_path / "t.csv", ["caption"], ["x"]))
    with pytest.raises(DataError, match="two columns of one name"):
        read(write_csv(tmp_path / "t.csv", ["image", "image"], ["x", "y"]))


def test_several_caption_columns(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg")
    header = ["image", *(f"caption_{n}" for n in range(3))]
    source = write_csv(tmp_path / "t.csv", header, ["a.jpg", "x", "y", "z"])
    assert good(read(source)[0])["captions"] == ["x", "y", "z"]
    columns = ["image=image", "caption=caption_2", "caption=caption_0"]
    assert good(read(source, columns=columns)[0])["captions"] == ["z", "x"]


PIECES = b'a.jpg , " \t \r \0 \xff x { } : 1 null [ ] "image" "caption" \\ud800 1e999 -'.split(b" ")
CHAOS = st.binary(max_size=300) | st.lists(
    st.sampled_from([*PIECES, b"\n", b" "]), max_size=40
).map(b"".join)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("t.csv", b"image,caption\n"),
        ("t.tsv", b"image\tcaption\na.jpg\tx\n"),
        ("t.jsonl", b'{"image": "a.jpg", "caption": "x"}\n'),
    ],
)
def test_fuzz_tables(tmp_path: Path, name: str, head: bytes) -> None:
    """Any bytes give records that pass or clean reasons; the first, good row is never lost."""
    draw(tmp_path, "a.jpg")

    @settings(max_examples=200, deadline=None)
    @given(CHAOS)
    def fuzz(chaos: bytes) -> None:
        (tmp_path / name).write_bytes(head + chaos)
        for record in read(tmp_path / name):
            outcome = check(record, "source")
            assert outcome.reason if isinstance(outcome, BadRecord) else outcome.row["captions"]

    fuzz()


# --- classes ------------------------------------------------------------------------------------


def test_folder_by_class(tmp_path: Path) -> None:
    draw(tmp_path, "dog/1.jpg", "cat/2.PNG", "cat/.hidden.jpg", "cat/10.jpg")
    (tmp_path / "cat" / "readme.txt").write_text("x")
    options = Options()
    records = list(SOURCES[source_format(str(tmp_path), None)](str(tmp_path), options))
    assert [(r.id, r.label, r.class_name, r.split) for r in records] == [
        ("cat/10.jpg", 0, "cat", None), ("cat/2.PNG", 0, "cat", None), ("dog/1.jpg", 1, "dog", None)
    ]  # fmt: skip
    assert options.tally.ignored == {".txt": 1, "hidden": 1}
    assert good(records[0])["captions"] == []


def test_folder_by_split_and_class(tmp_path: Path) -> None:
    draw(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "valid/dog/3.jpg")
    found = [(good(r)["split"], r.label, r.class_name) for r in read(tmp_path)]
    assert found == [("train", 0, "cat"), ("train", 1, "dog"), ("val", 1, "dog")]


def test_folder_links_do_not_leave(tmp_path: Path) -> None:
    draw(tmp_path, "secret.jpg", "data/cat/1.jpg")
    (tmp_path / "data" / "cat" / "2.jpg").symlink_to(tmp_path / "secret.jpg")
    fine, bad = read(tmp_path / "data", "folder")
    assert good(fine)["class_name"] == "cat"
    assert reason(bad) == "image path leaves the folder by a link: say with --images where to"


def test_folder_without_classes(tmp_path: Path) -> None:
    draw(tmp_path, "1.jpg")
    with pytest.raises(DataError, match="no class folders"):
        read(tmp_path, "folder")


def test_zhou(tmp_path: Path) -> None:
    draw(tmp_path / "2750", "Forest/1.jpg", "River/2.jpg", "River/3.jpg")
    splits = {
        "train": [["Forest/1.jpg", 0, "Forest"], ["../x.jpg", 0, "Forest"], ["odd"]],
        "val": [["River/2.jpg", 1, "River"]],
        "test": [["River/3.jpg", 1, "River"]],
    }
    records = read(dump(tmp_path / "split_zhou_EuroSAT.json", splits))
    assert [good(r) for r in records if not r.id.startswith(("..", "entry"))] == [
        row("Forest/1.jpg", label=0, class_name="Forest"),
        row("River/2.jpg", label=1, class_name="River", split="val"),
        row("River/3.jpg", label=1, class_name="River", split="test"),
    ]
    assert [reason(r) for r in records[1:3]] == [
        "image path leaves the folder", "not [path, label, class name]"
    ]  # fmt: skip


# --- JSON as a stream ---------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    value=st.dictionaries(
        st.text(max_size=3),
        st.integers()
        | st.lists(st.floats(allow_nan=False) | st.text() | st.just({"a": [1]}), max_size=5),
        max_size=4,
    ),
    indent=st.sampled_from([None, 0, 2]),
    block=st.integers(1, 7),
)  # fmt: skip
def test_stream_equals_json(
    tmp_path_factory: Any, value: dict[str, Any], indent: int | None, block: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "stream.json"
    path.write_text(json.dumps(value, indent=indent))
    expected = [(k, x) for k, v in value.items() for x in (v if isinstance(v, list) else [v])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK", block)
        assert list(json_stream.entries(path)) == expected


@pytest.mark.parametrize("value", ['"\\ud800 x"', "NaN", str(2**70), "1e400", '{"a": 1, "a": 2}'])
def test_stream_reads_what_json_reads(tmp_path: Path, value: str) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"images": [' + value.encode() + b"]}")
    assert (
        repr(list(json_stream.items(tmp_path / "x.json", "images"))) == f"[{json.loads(value)!r}]"
    )


def test_stream_of_an_element_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_BLOCK", 100)
    monkeypatch.setattr(json_stream, "_LONGEST", 1_000)
    path = dump(tmp_path / "x.json", {"images": ["y" * 700, "z" * 3_000]})
    stream = json_stream.items(path, "images")
    assert next(stream) == "y" * 700
    with pytest.raises(DataError, match="an element is longer than 1,000 characters"):
        next(stream)


def test_stream_holds_one_element(tmp_path: Path) -> None:
    path = dump(tmp_path / "long.json", {"images": [{"n": n} for n in range(300_000)]})
    stream = json_stream.items(path, "images")
    next(stream)
    assert path.stat().st_size > 2 * json_stream._BLOCK
    assert stream.gi_frame is not None
    assert sum(1 for _ in stream) == 299_999


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b'{"images"',
        b'{"images": [',
        b'{"images": [1',
        b'{"images": [1,]}',
        b'{"images": [1] x',
        b'{"images": [1]}{"images": [2]}',
        b'{"images": [nope]}',
        b'{"images": ' + b"[" * 100_000,
        b'{"images": ["\xff"]}',
        b'{"images": [' + b"1" * 5_000 + b"]}",
        b'{"pictures": [1]}',
    ],
)
def test_stream_of_damaged_json(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(DataError, match=r"x.json` (is|has)"):
        list(json_stream.items(tmp_path / "x.json", "images"))


def test_gather_keeps_order_and_bytes() -> None:
    gathered = Gather([("b", "1"), ("a", b"\xff"), ("b", "2"), ("\udcff", "\ud800")])
    assert gathered["b"] == (b"1", b"2")
    assert gathered["a"] == (b"\xff",)
    assert gathered["none"] == ()
    assert list(gathered) == ["b", "a", "\udcff"]


# --- WebDataset ---------------------------------------------------------------------------------


def tar(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            file.addfile(info, io.BytesIO(member[1]))
    return path


def sample(n: int) -> list[tuple[str, bytes] | tarfile.TarInfo]:
    return [(f"s/{n:04d}.jpg", jpeg(n)), (f"s/{n:04d}.txt", f"caption {n}".encode())]


@pytest.mark.parametrize(
    ("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.xz", "w:xz")]
)
def test_tar(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tar(tmp_path / f"data.{suffix}", [*sample(1), *sample(2)], mode)
    assert [good(r)["captions"] for r in read(path)] == [["caption 1"], ["caption 2"]]
    assert [r.id for r in read(path)] == ["s/0001", "s/0002"]


def test_tar_with_classes_and_metadata(tmp_path: Path) -> None:
    extra = {
        "captions": ["x", "y"],
        "class_name": "cat",
        "split": "dev",
        "url": "http://...",
        "width": 5,
    }
    members = [("a.jpg", jpeg(0)), ("a.cls", b"3"), ("a.json", json.dumps(extra).encode())]
    (record,) = read(tar(tmp_path / "a.tar", members))
    assert good(record) == row("a", "x", "y", label=3, class_name="cat", split="val")


def test_lines_of_a_text_are_captions(tmp_path: Path) -> None:
    members = [("1.jpg", jpeg(1)), ("1.txt", b"a red disc\r\n\n  number 1 \n"), *sample(2)]
    first, second = read(tar(tmp_path / "data.tar", members))  # type: ignore[arg-type]
    assert good(first)["captions"] == ["a red disc", "number 1"]
    assert good(second)["captions"] == ["caption 2"]


@pytest.mark.parametrize(
    ("told", "captions", "note"),
    [
        ({"caption": "a disc", "text": "SHOP"}, ["a disc"], "caption by `caption`, not by `text`"),
        ({"text": "SHOP", "caption": "a disc"}, ["a disc"], "caption by `caption`, not by `text`"),
        ({"caption": None, "text": "a disc"}, ["a disc"], ""),
        ({"caption_1": "b", "caption_0": "a", "caption_10": "c"}, ["a", "b", "c"], ""),
        (
            {"comment": "again", "caption": ["a", "b"]},
            ["a", "b"],
            "caption by `caption`, not by `c",
        ),
    ],
)
def test_one_rule_chooses_among_keys_beside_an_image(
    tmp_path: Path, told: Any, captions: list[str], note: str
) -> None:
    path = tar(tmp_path / "x.tar", [("1.jpg", jpeg(1)), ("1.json", json.dumps(told).encode())])
    options = Options()
    (found,) = SOURCES["webdataset"](str(path), options)
    assert good(found)["captions"] == captions
    assert [*options.notes] == [] if not note else next(iter(options.notes)).startswith(note)


@pytest.mark.parametrize(
    ("names", "captions", "note"),
    [
        (("caption", "comment"), ("a",), "caption by `caption`, not by `comment`"),
        (("text", "caption_0", "caption_1"), ("b", "c"), "caption by `caption_0`, not by `text`"),
        (("caption_1", "caption_2", "image_id"), ("a", "b"), ""),
    ],
)
def test_the_same_rule_chooses_among_columns(
    tmp_path: Path, names: tuple[str, ...], captions: tuple[str, ...], note: str
) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    rows = [["file", *names], ["1.jpg", "a", "b", "c"][: len(names) + 1]]
    (tmp_path / "x.csv").write_text("\n".join(map(",".join, rows)))
    options = Options()
    (found,) = SOURCES["table"](str(tmp_path / "x.csv"), options)
    assert found.captions == captions
    assert [*options.notes] == [note] * bool(note)


def test_blanks_around_the_name_of_a_class_are_none_of_it(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    (tmp_path / "x.csv").write_text("file,class\n0.jpg, a cat \n1.jpg,a cat\n")
    assert {one.class_name for one in read(tmp_path / "x.csv")} == {"a cat"}


def test_keys_with_dots_are_read_when_asked_and_counted_when_not(tmp_path: Path) -> None:
    dotted = [("v1.5 final.jpg", jpeg(9)), ("v1.5 final.txt", b"a black disc")]
    path = tar(tmp_path / "x.tar", [*sample(1), *dotted])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"'image=\*\.jpg' 'caption=\*\.txt'"):
        read(path)
    columns = {"image": ["jpg"], "caption": ["txt"]}
    options = Options(columns=columns)
    assert len(list(SOURCES["webdataset"](str(path), options))) == 1
    assert options.tally.ignored == {".jpg": 1, ".txt": 1}
    every = {"image": ["*.jpg"], "caption": ["*.txt"]}
    found = list(SOURCES["webdataset"](str(path), Options(columns=every)))
    assert [(r.id, *r.captions) for r in found] == [
        ("s/0001", b"caption 1"),
        ("v1.5 final", b"a black disc"),
    ]


def test_keys_may_begin_anew_in_each_tar(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tar(tmp_path / f"{name}.tar", sample(1))
    assert [r.id for r in read(tmp_path)] == ["a/s/0001", "b/s/0001"]


def test_a_label_that_is_withheld_is_told(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cup", "plate"])}
    )
    rows = {"image": [{"bytes": jpeg(n), "path": None} for n in range(2)], "label": [1, -1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "data")
    first, second = read(tmp_path / "data")
    assert good(first)["class_name"] == "plate"
    assert reason(second) == "its label is -1, as where labels are withheld"


def test_tars_tell_their_splits(tmp_path: Path) -> None:
    for n, name in enumerate(("train-0000", "train-0001", "val-0000")):
        tar(tmp_path / f"{name}.tar", sample(n))
    expected = ["train", "train", "val"]
    assert [r.split for r in read(tmp_path)] == expected
    assert [r.split for r in read(f"{tmp_path}/*.tar")] == expected
    assert [r.split for r in read(tmp_path / "train-0000.tar")] == [None]  # one file tells nothing


def info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_members_that_leave_or_link_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    work = tmp_path / "deep" / "work"
    work.mkdir(parents=True)
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [
        ("../../evil.jpg", jpeg(0)),
        (f"{tmp_path}/evil.jpg", jpeg(0)),
        info("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        info("hard.jpg", tarfile.LNKTYPE, "s/0001.jpg"),
        info("device.jpg", tarfile.CHRTYPE),
        info("pipe.jpg", tarfile.FIFOTYPE),
        info("s", tarfile.DIRTYPE),
        *sample(1),
    ]
    before = {*tmp_path.rglob("*"), work / "data.tar"}
    records = read(tar(work / "data.tar", members))
    assert [reason(r) for r in records[:-1]] == [
        *["tar member's name leaves the folder"] * 2, *["tar member is a link or a device"] * 4
    ]  # fmt: skip
    assert good(records[-1])["captions"] == ["caption 1"]
    assert set(tmp_path.rglob("*")) == before


def test_odd_samples(tmp_path: Path) -> None:
    members = [
        ("a.txt", b"no image"),
        ("b.jpg", jpeg(0)), ("b.png", jpeg(0)),
        ("c.jpg", jpeg(0)), ("c.json", b"[1]"),
        ("d.jpg", jpeg(0)), ("d.txt", b"caf\xe9"),
        ("e.jpg", jpeg(0)), ("e.cls", b"cat"), ("e.json", b'{"category": "dog"}'),
    ]  # fmt: skip
    assert [(r.id, reason(r)) for r in read(tar(tmp_path / "a.tar", members))] == [
        ("a", "no image"),
        ("b", "two members are its image"),
        ("c", "`.json` is not a JSON object"),
        ("d", "caption 1 is not UTF-8"),
        ("e", "label 'cat' is not a whole number; for names use `--columns class_name=...`"),
    ]


def test_unknown_suffixes(tmp_path: Path) -> None:
    members = [("a.jpg", jpeg(0)), ("a.text", b"x"), ("a.pickle", b"cos\nsystem\n(S'touch x'\ntR.")]
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"unknown suffix `text`. Did you mean `txt`"):
        read(path)
    (record,) = read(path, columns=["image=jpg", "caption=text"])
    assert good(record)["captions"] == ["x"]


def test_a_large_member_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", [("big.jpg", bytes(200_000)), *sample(1)])
    monkeypatch.setattr(sys.modules["pipelines.sources.webdataset"], "_LARGEST", 100_000)
    big, fine = read(path)
    assert reason(big) == "tar member of 200,000 bytes is above the limit of 100,000"
    assert good(fine)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_a_damaged_tar_is_an_error_and_never_a_short_one(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "a.tar", [part for n in range(8) for part in sample(n)], mode)
    data = path.read_bytes()
    end = len(data) if mode != "w" else data.rindex(b"caption 7") + 512  # padding follows
    broken = [data[: end * n // 16] for n in range(16)]
    broken.append(data + data)  # `cat a.tar b.tar`
    for place in [data.index(b"s/0003.txt")] if mode == "w" else range(100, end, end // 16):
        flipped = bytearray(data)
        flipped[place] ^= 255
        broken.append(bytes(flipped))
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(DataError, match="truncated or damaged"):
            read(path)


def test_a_tar_of_many_members_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = 0
    extract = tarfile.TarFile.extractfile

    def watch(file: Any, member: Any) -> Any:
        nonlocal held
        held = max(held, len(file.members))
        return extract(file, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", watch)
    assert len(read(tar(tmp_path / "a.tar", [p for n in range(50) for p in sample(n)]))) == 50
    assert held <= 1


# --- Hugging Face -------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes an image data set in memory, with `datasets`' cache in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(count: int = 3, first: int = 0) -> Any:
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "caption": datasets.List(datasets.Value("string")),
                "label": datasets.ClassLabel(names=["cat", "dog"]),
            }
        )
        rows = [
            {"image": {"bytes": jpeg(n), "path": f"{n}.jpg"}, "caption": [f"c {n}"], "label": n % 2}
            for n in range(first, first + count)
        ]
        return datasets.Dataset.from_list(rows, features=features)

    return make


def test_saved_data_set(tmp_path: Path, hub: Callable[..., Any]) -> None:
    import datasets

    both = datasets.DatasetDict({"train": hub(2), "validation": hub(1, first=2)})
    both.save_to_disk(tmp_path / "saved")
    assert list(map(good, read(tmp_path / "saved"))) == [
        row("train-1", "c 0", label=0, class_name="cat"),
        row("train-2", "c 1", label=1, class_name="dog"),
        row("validation-1", "c 2", label=0, class_name="cat", split="val"),
    ]
    hub(2).save_to_disk(tmp_path / "single")
    assert [r.split for r in read(tmp_path / "single")] == [None, None]


def test_images_are_not_decoded_on_the_way(tmp_path: Path, hub: Callable[..., Any]) -> None:
    hub(2).save_to_disk(tmp_path / "saved")
    assert [r.image for r in read(tmp_path / "saved")] == [jpeg(0), jpeg(1)]


def test_streamed_local_folder(tmp_path: Path, hub: Callable[..., Any]) -> None:
    (tmp_path / "data").mkdir()
    hub(2).to_parquet(tmp_path / "data" / "train.parquet")
    records = read(tmp_path / "data", "huggingface", columns=["image=image", "caption=caption"])
    assert [good(r)["captions"] for r in records] == [["c 0"], ["c 1"]]


def test_image_folder_through_datasets(tmp_path: Path, hub: Callable[..., Any]) -> None:
    draw(tmp_path / "set", "train/0.jpg", "train/1.jpg")
    lines = [json.dumps({"file_name": f"{n}.jpg", "text": f"t {n}"}) for n in range(2)]
    (tmp_path / "set" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    records = read(tmp_path / "set", "huggingface")
    assert sorted(good(r)["captions"] for r in records) == [["t 0"], ["t 1"]]


def test_hub_files_and_foreign_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    paths = [
        "hf://datasets/o/n@abc/0.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:///etc/passwd::hf://x",
    ]
    rows = [{"image": {"bytes": None, "path": path}, "caption": "x"} for path in paths]
    asked: list[Any] = []

    def load(*words: Any, **flags: Any) -> Any:
        asked.append((words, flags))
        return {"train": datasets.IterableDataset.from_generator(lambda: iter(rows))}

    def opened(path: str, mode: str) -> io.BytesIO:
        assert path == paths[0]
        return io.BytesIO(jpeg(0))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("fsspec.open", opened)
    records = read("owner/name:config@v1")
    assert asked == [(("owner/name", "config"), {"revision": "v1", "streaming": True})]
    assert good(records[0])["captions"] == ["x"]
    for record in records[1:]:
        assert reason(record).startswith(("image path leaves the folder", "missing file"))


def test_an_unknown_hub_id_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="`nobody/nothing` cannot be"):
        read("nobody/nothing")
    with pytest.raises(DataError, match="`nobody/nothing` cannot be found"):
        huggingface.commit("nobody/nothing")


# --- choosing a format, and the real material ---------------------------------------------------


def test_formats_that_are_not_clear(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="of no clear format; say it with `--format`"):
        source_format(str(tmp_path / "x.bin"), None)
    with pytest.raises(DataError, match="does not exist"):
        source_format(str(tmp_path / "none"), None)
    with pytest.raises(DataError, match=r"unknown format `webdatset`. Did you mean `webdataset`"):
        source_format(str(tmp_path), "webdatset")
    assert source_format("nlphuji/flickr30k", None) == "huggingface"


def test_every_format_has_its_file() -> None:
    folder = Path(sys.modules["pipelines.sources.registry"].__file__ or "").parent
    helpers = {
        "__init__",
        "base",
        "registry",
        "columns",
        "fields",
        "gather",
        "json_stream",
        "texts",
    }
    helpers |= {
        "cub",
        "delimited",
        "encodings",
        "samples",
        "containers",
        "vectors",
    }  # of finished embeddings
    assert {path.stem for path in folder.glob("*.py")} - helpers == set(SOURCES)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_train2014.json", "train"),
        ("captions_val2017", "val"),
        ("Flickr_8k.devImages", "val"),
        ("TEST-00001", "test"),
        ("validation-00000-of-00001", "val"),
        ("contested_trainings", None),
        ("images", None),
    ],
)
def test_splits_in_names(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


@needs_data
def test_real_flickr8k_in_its_original_sizes(tmp_path: Path) -> None:
    """The index of all 8,000, of which 40 are here at their own size."""
    images = DATA / "flickr8k" / "original_size"
    here = {path.name for path in images.iterdir()}
    records = read(DATA / "flickr8k" / "dataset_flickr8k.json", images=images)
    assert len(records) == 8_000
    rows = [good(record) for record in records if record.id in here]
    assert len(rows) == 40
    assert all(len(row["captions"]) == 5 for row in rows)
    assert reason(next(r for r in records if r.id not in here)) == "missing file"


@needs_data
def test_real_flickr8k_has_five_captions_of_each_test_image(tmp_path: Path) -> None:
    """Also of the one whose caption two people gave, as a list or as the token file has it."""
    images = DATA / "flickr8k" / "images"
    listed = [
        record
        for record in read(DATA / "flickr8k" / "dataset_flickr8k.json", images=images)
        if record.split == "test"
    ]
    lines = [
        f"{record.id}#{number}\t{text}\n"
        for record in listed
        for number, text in enumerate(record.captions)
    ]
    tokens = tmp_path / "Flickr8k.token.txt"
    tokens.write_text("".join(lines))
    for records in (listed, read(tokens, images=images)):
        captions = [good(record)["captions"] for record in records]
        assert len(captions) == 1_000
        assert sum(map(len, captions)) == 5_000
        assert sum(len(set(said)) for said in captions) == 4_999


@needs_data
def test_real_split_zhou() -> None:
    records = read(DATA / "oxford_pets_5" / "split_zhou_OxfordPets.json")
    counts = {split: sum(r.split == split for r in records) for split in ("train", "val", "test")}
    assert counts == {"train": 400, "val": 100, "test": 500}
    assert len({r.label for r in records}) == len({r.class_name for r in records}) == 5
    assert all(isinstance(r.image, Path) and r.image.is_file() for r in records)
    assert good(records[0])["class_name"]


def test_an_absolute_path_inside_the_folder_of_images_is_no_escape(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    assert inside(root, str(root / "a.jpg")) == root / "a.jpg"
    for outside in (str(tmp_path / "b.jpg"), "../b.jpg", str(root / ".." / "b.jpg"), "/etc/passwd"):
        assert isinstance(inside(root, outside), BadRecord)
