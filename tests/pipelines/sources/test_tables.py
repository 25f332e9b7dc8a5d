"""Tables as people have them: stray quotation marks, pandas' columns and labels, lists in a cell,
images in a folder beside them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.shards import __main__ as shards
from pipelines.shards.records import check
from pipelines.sources.base import BadRecord, Options, RawRecord, parse_columns
from pipelines.sources.registry import SOURCES, source_format
from pipelines.sources.texts import listed
from tests.pictures import draw
from trainables.data.shards import ShardSet
from trainables.errors import DataError


def read(source: Path, options: Options | None = None) -> list[RawRecord]:
    """All records, the format found out."""
    name = source_format(str(source), None)
    return list(SOURCES[name](str(source), options or Options()))


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def outcomes(source: Path) -> list[Any]:
    """Captions, or why there are none."""
    checked = [check(record, "source") for record in read(source)]
    return [o.reason if isinstance(o, BadRecord) else o.row["captions"] for o in checked]


# --- quotation marks ----------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", ["\t", "|"])
@pytest.mark.parametrize(
    "texts",
    [
        ['"Stop" sign', "a red disc", "two discs"],  # an error by the rules of CSV
        ['"unclosed', "a red disc", "two discs"],
        ['"opens here', 'closes there"', "two discs"],  # none: one cell over two rows
        ['15" screen', "a red disc", 'a 3" nail'],  # a mark inside a cell is none
    ],
)
def test_stray_marks_between_tabs_stand_as_they_are(
    tmp_path: Path, delimiter: str, texts: list[str]
) -> None:
    draw(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    lines = [f"{n}.jpg{delimiter}{text}" for n, text in enumerate(texts)]
    source = write(tmp_path / "t.tsv", f"image{delimiter}caption", *lines)
    assert outcomes(source) == [[text] for text in texts]
    options, quoted = Options(), texts[0] != '15" screen'
    read(source, options)
    assert sum(options.notes.values()) == quoted
    assert all("quotation marks" in note for note in options.notes)


@pytest.mark.parametrize("delimiter", ["\t", "|"])
def test_a_file_that_quotes_by_the_rules_is_read_by_them(tmp_path: Path, delimiter: str) -> None:
    draw(tmp_path, "0.jpg", "1.jpg")
    source = write(
        tmp_path / "t.tsv",
        f"image{delimiter}caption",
        f'0.jpg{delimiter}"a ""red"" disc\nof two lines"',
        f'1.jpg{delimiter}"cells{delimiter}of one"',
    )
    one = " ".join(f"cells{delimiter}of one".split())
    assert outcomes(source) == [['a "red" disc of two lines'], [one]]


def test_rows_that_a_quoted_cell_swallows_are_counted_where_commas_part_cells(
    tmp_path: Path,
) -> None:
    draw(tmp_path, *(f"{n}.jpg" for n in range(4)))
    source = write(
        tmp_path / "t.csv",
        "image,caption",
        '0.jpg,"opens here',
        '1.jpg,closes there"',
        '2.jpg,"of two lines,\nand a comma, as is right"',
        "3.jpg,a disc",
    )
    bad = "a quotation mark that is not closed on its line swallows rows"
    assert outcomes(source) == [bad, bad, ["of two lines, and a comma, as is right"], ["a disc"]]


# --- several captions in a cell -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('["a disc", "b"]', ["a disc", "b"]),
        ("['a disc', \"it's b\"]", ["a disc", "it's b"]),
        ("['a disc'\n 'b']", ["a disc", "b"]),  # an array of NumPy's, as pandas writes one
        (r"['caf\xe9', 'it\'s']", ["café", "it's"]),
        ("[]", []),
        ("[" + " " * 90_000 + "x]", None),  # at once
        ("[a man] walks [there]", None),
        ("a disc", None),
        ("[UNK]", None),
        ("{sic}", None),
    ],
)
def test_a_text_that_is_a_list(text: str, captions: list[str] | None) -> None:
    assert listed(text) == captions


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[{"raw": "a disc"}]', "caption is JSON and no list of texts"),
        ('{"raw": "a disc"}', "caption is JSON and no list of texts"),
        ("['a', 1]", "caption begins as a list of texts and is none"),
        ("['a', print('b')]", "caption begins as a list of texts and is none"),
        ("['a''b']", "caption begins as a list of texts and is none"),
        ("['a'" + " " * 90_000 + "x]", "caption begins as a list of texts and is none"),
        ("['" + "a" * 100_000 + "']", "caption begins as a list of texts and is none"),
    ],
)
def test_a_list_that_cannot_be_read_is_no_caption(tmp_path: Path, text: str, why: str) -> None:
    draw(tmp_path, "0.jpg")
    source = tmp_path / "t.jsonl"
    source.write_text(json.dumps({"image": "0.jpg", "caption": text}))
    assert outcomes(source) == [why]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_cell_with_a_list_is_several_captions(tmp_path: Path, kind: str) -> None:
    draw(tmp_path, "0.jpg")
    text, source = '["a disc", "b, c"]', tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"image": ["0.jpg"], "captions": [text]}), source)
    elif kind == "jsonl":
        source.write_text(json.dumps({"image": "0.jpg", "captions": text}))
    elif kind == "csv":
        write(source, "image,captions", '0.jpg,"[""a disc"", ""b, c""]"')
    else:
        write(source, "image\tcaptions", f"0.jpg\t{text}")
    options = Options()
    (record,) = read(source, options)
    assert record.captions == ("a disc", "b, c")
    assert options.notes == {"a text is a list of captions": 1}


# --- pandas -------------------------------------------------------------------------------------


def test_labels_that_pandas_made_floats(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{n}.jpg" for n in range(4)))
    rows = [(0, "0.0", 0.0), (1, "7.", 7.0), (2, "0.5", 0.5), (3, "-1.0", -1.0)]
    lines = [f"{n}.jpg,{text},cup" for n, text, _ in rows]
    csv = write(tmp_path / "t.csv", "image,label,class_name", *lines)
    columns = {"image": [f"{n}.jpg" for n in range(4)], "label": [one for _, _, one in rows]}
    pq.write_table(pa.table(columns | {"class_name": ["cup"] * 4}), tmp_path / "t.parquet")
    for source in (csv, tmp_path / "t.parquet"):
        found = read(source)
        assert [one.label for one in found] == [0, 7, None, -1]
        half = check(found[2], "source")
        assert isinstance(half, BadRecord)
        assert "0.5" in half.reason
        assert "is not a whole number" in half.reason


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1", "__index_level_0__"])
def test_pandas_index_is_left_out_and_said(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "0.jpg", "1.jpg")
    csv = write(tmp_path / "t.csv", f"{name},image,caption", "0,0.jpg,a", "1,1.jpg,b")
    columns = {name: [0, 1], "image": ["0.jpg", "1.jpg"], "caption": ["a", "b"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    for source in (csv, tmp_path / "t.parquet"):
        options = Options()
        assert [one.captions for one in read(source, options)] == [("a",), ("b",)]
        assert options.notes == {f"column {name!r} numbers rows and is left out": 1}


def test_a_table_without_a_header_is_told_so(tmp_path: Path) -> None:
    source = write(tmp_path / "t.tsv", "0.jpg\ta disc", "1.jpg\tb")
    with pytest.raises(
        DataError, match=r"no header: .* `0.jpg`\. Write one .* `image<TAB>caption`"
    ):
        read(source)


def test_addresses_are_not_downloaded_and_it_is_said_how(tmp_path: Path) -> None:
    columns = {"URL": ["http://example.com/0.jpg"], "TEXT": ["a disc"], "WIDTH": [24]}
    source = tmp_path / "part 0.parquet"
    pq.write_table(pa.table(columns), source)
    with pytest.raises(DataError, match="addresses of images") as caught:
        read(source)
    _, command, then = re.findall(r"`([^`]* --[^`]*)`", f"`{' --'}`{caught.value}")
    assert shlex.split(command) == [
        *("img2dataset", "--url_list", str(source), "--input_format", "parquet"),
        *("--url_col", "URL", "--caption_col", "TEXT"),
        *("--output_format", "webdataset", "--output_folder", "images"),
        *("--resize_mode", "keep_ratio"),
    ]
    assert then == "cliptune shards --source images"
    with_paths = write(tmp_path / "t.csv", "url,image,caption", "http://x,0.jpg,a disc")
    draw(tmp_path, "0.jpg")
    with pytest.raises(DataError, match=r"unknown column `url`"):
        read(with_paths)
    headerless = write(tmp_path / "t.tsv", "a disc\thttp://example.com/0.jpg")
    with pytest.raises(DataError, match=r"no header: .* as `caption<TAB>url`"):
        read(headerless)


def test_a_list_of_json_is_a_table(tmp_path: Path) -> None:
    draw(tmp_path / "val2014", "0.jpg", "1.jpg")
    rows = [
        {"image": "val2014/0.jpg", "caption": "a disc", "image_id": "coco_0"},
        {"image": "val2014/0.jpg", "caption": "red", "image_id": "coco_0"},
        {"image": "val2014/1.jpg", "caption": ["b", "c"], "image_id": "coco_1"},
        5,
    ]
    (tmp_path / "coco_train.json").write_text(json.dumps(rows, indent=1))
    assert outcomes(tmp_path / "coco_train.json") == [
        ["a disc", "red"], ["b", "c"], "not a JSON object"
    ]  # fmt: skip
    assert outcomes(tmp_path) == outcomes(tmp_path / "coco_train.json")
    (tmp_path / "coco_train.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="it is not guessed"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_tables_as_excel_saves_them(tmp_path: Path, encoding: str) -> None:
    draw(tmp_path, "0.jpg")
    text = "image\tcaption\r\n0.jpg\tein Männchen\r\n"
    (tmp_path / "t.txt").write_bytes(text.encode(encoding))
    assert outcomes(tmp_path / "t.txt") == [["ein Männchen"]]


# --- where the images are -----------------------------------------------------------------------


def test_captions_beside_a_folder_of_images_are_read(tmp_path: Path) -> None:
    draw(tmp_path / "Images", "0.jpg", "1.jpg")
    write(tmp_path / "captions.txt", "image,caption", "0.jpg,a disc", "0.jpg,red", "1.jpg,b")
    write(tmp_path / "readme.txt", "Flickr8k, of which these are two")
    assert outcomes(tmp_path) == [["a disc", "red"], ["b"]]


def test_the_first_images_may_be_missing(tmp_path: Path) -> None:
    draw(tmp_path / "Images", "2.jpg", "3.jpg")
    lines = [f"{n}.jpg,disc {n}" for n in range(4)]
    write(tmp_path / "captions.txt", "image,caption", *lines)
    assert outcomes(tmp_path) == ["missing file", "missing file", ["disc 2"], ["disc 3"]]


@pytest.mark.parametrize("ending", ["jfif", "JFIF", "JPG", "Png", "TIFF"])
def test_endings_of_images(tmp_path: Path, ending: str) -> None:
    draw(tmp_path, f"cup/0.{ending}", f"plate/1.{ending}", first=3)
    assert [one.class_name for one in read(tmp_path)] == ["cup", "plate"]


@pytest.mark.parametrize("ending", ["CSV", "Txt"])
def test_endings_of_tables(tmp_path: Path, ending: str) -> None:
    draw(tmp_path, "0.jpg")
    source = write(tmp_path / f"t.{ending}", "image,caption", "0.jpg,a disc")
    assert outcomes(source) == [["a disc"]]
    assert outcomes(tmp_path) == [["a disc"]]


def test_a_path_that_stands_in_hugging_faces_form(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", "0.jpg")
    cells = [{"bytes": None, "path": "0.jpg"}]
    pq.write_table(pa.table({"image": cells, "caption": ["a disc"]}), tmp_path / "t.parquet")
    assert outcomes(tmp_path / "t.parquet") == [["a disc"]]


def test_paths_that_windows_wrote(tmp_path: Path) -> None:
    draw(tmp_path / "pictures" / "deep", "0.jpg")
    source = write(tmp_path / "t.csv", "image,caption", "pictures\\deep\\0.jpg,a disc")
    assert outcomes(source) == [["a disc"]]
    source = write(tmp_path / "t.csv", "image,caption", "pictures\\..\\..\\0.jpg,a disc")
    assert outcomes(source) == ["image path leaves the folder"]


def test_what_a_mac_puts_into_a_zip_is_no_data(tmp_path: Path) -> None:
    draw(tmp_path, "Images/0.jpg", "__MACOSX/Images/._0.jpg")
    write(tmp_path / "captions.csv", "image,caption", "0.jpg,a disc")
    (tmp_path / "._captions.csv").write_bytes(b"\x00\x05\x16\x07")
    assert outcomes(tmp_path) == [["a disc"]]
    draw(tmp_path / "classes", "cup/0.jpg", "plate/1.jpg", "__MACOSX/cup/._0.jpg", "A/2.jpg")
    found = read(tmp_path / "classes")
    assert [(one.label, one.class_name) for one in found] == [(0, "A"), (1, "cup"), (2, "plate")]


def test_the_command_line_reads_what_pandas_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path, *(f"{n}.jpg" for n in range(20)))
    lines = [f"{n},{n}.jpg,{n % 2}.0,{'cup' if n % 2 else 'plate'}" for n in range(20)]
    source = write(tmp_path / "t.csv", ",image,label,class_name", *lines)
    shards.run(shards.Args(str(source), tmp_path / "out"))
    assert "note: column '' numbers rows and is left out (1)" in capsys.readouterr().out
    assert ShardSet.open(tmp_path / "out").classes == {"plate": 0, "cup": 1}


# --- classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("dog", "cat"), ("True", "False"), (True, False)])
def test_labels_that_are_names_are_names(tmp_path: Path, names: tuple[Any, Any]) -> None:
    draw(tmp_path, "0.jpg", "1.jpg")
    rows = [json.dumps({"image": f"{n}.jpg", "label": name}) for n, name in enumerate(names)]
    options = Options()
    found = read(write(tmp_path / "said.jsonl", *rows), options)
    assert [(one.class_name, one.label) for one in found] == [(str(name), None) for name in names]
    assert options.notes == {"column 'label' has names of classes": 1}


def test_numbers_of_classes_alone_say_nothing(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg", "1.jpg")
    source = write(tmp_path / "said.csv", "image,label", "0.jpg,3", "1.jpg,0")
    with pytest.raises(DataError, match=r"has numbers of classes \(`label`, such as 3\)") as caught:
        read(source)
    (line,) = re.findall(r"`--columns ([^`]*)`", str(caught.value))
    found = read(source, Options(columns=parse_columns(shlex.split(line))))
    assert [(one.class_name, one.label) for one in found] == [("3", 3), ("0", 0)]


def test_numbers_as_class_names_of_parquet(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg", "1.jpg")
    path = tmp_path / "said.parquet"
    pq.write_table(pa.table({"image": ["0.jpg", "1.jpg"], "label": [3.0, 0.0]}), path)
    found = read(path, Options(columns=parse_columns(["image=image", "class_name=label"])))
    assert [one.class_name for one in found] == ["3", "0"]


def test_the_command_for_known_columns_beside_an_unknown_one(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg")
    source = write(tmp_path / "said.csv", "image path,my text,title of it", "0.jpg,x,y")
    with pytest.raises(DataError, match="as in `--columns image=path caption=title`"):
        read(source)
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "two.csv", "img,caption 1,caption 2,source", "0.jpg,x,y,z"))
    (line,) = re.findall(r"`--columns ([^`]*)`", str(caught.value))
    columns = parse_columns(shlex.split(line))
    (record,) = read(tmp_path / "two.csv", Options(columns=columns))
    assert record.captions == ("x", "y")


# --- captions -----------------------------------------------------------------------------------


def test_blank_captions_beside_others_are_left_out_and_noted(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    rows = ["0.jpg,a,", "1.jpg,b,c", "2.jpg, ,"]
    source = write(tmp_path / "said.csv", "image,caption_0,caption_1", *rows)
    assert outcomes(source) == [["a"], ["b", "c"], "caption 1 is empty"]
    shards.run(shards.Args(str(source), tmp_path / "out", max_bad_fraction=0.5))
    assert ShardSet.open(tmp_path / "out").manifest["notes"]["blank_captions_left_out"] == 1


def test_a_caption_said_twice_is_two_in_a_list_as_over_rows(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg")
    row = {"image": "0.jpg", "caption": ["a disc", "red", "a  disc"]}
    listed = write(tmp_path / "list.jsonl", json.dumps(row))
    rows = write(
        tmp_path / "rows.csv", "image,caption", "0.jpg,a disc", "0.jpg,red", "0.jpg,a disc"
    )
    for source in (listed, rows):
        shards.run(shards.Args(str(source), tmp_path / "out", split="train", overwrite=True))
        made = ShardSet.open(tmp_path / "out")
        (found,) = made.rows("train")
        assert found["captions"] == ["a disc", "red", "a disc"]
        assert made.manifest["notes"]["captions_said_twice"] == 1


def test_with_a_split_for_all_it_does_not_matter_what_the_source_says(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg", "1.jpg")
    rows = ["0.jpg,a,", "1.jpg,b,extra"]
    (first, second) = read(write(tmp_path / "said.csv", "image,caption,split", *rows))
    for record in (first, second):
        outcome = check(record, "train")
        assert not isinstance(outcome, BadRecord)
        assert outcome.row["split"] == "train"
        assert isinstance(check(record, "source"), BadRecord)


# --- folders of the images ----------------------------------------------------------------------


def test_a_column_and_a_files_name_that_tell_two_splits_are_told(tmp_path: Path) -> None:
    source = tmp_path / "source"
    draw(source, "0.jpg", "1.jpg")
    write(source / "train.csv", "image,caption,split", "0.jpg,a disc,test")
    write(source / "test.csv", "image,caption,split", "1.jpg,a disc,test")
    (whole, bad) = outcomes(source)  # test.csv, then train.csv
    assert whole == ["a disc"]
    assert bad == 'unknown split "test, but train by its file\'s name"'
    shards.run(shards.Args(str(source), tmp_path / "out", split="train"))
    assert ShardSet.open(tmp_path / "out").splits["train"]["images"] == 2


def test_each_split_has_its_own_names(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "test")):
        draw(tmp_path / split, "0.jpg", first=n)
        write(tmp_path / split / "metadata.csv", "file_name,text", f"0.jpg,disc {split}")
    found = list(SOURCES["table"](str(tmp_path), Options()))
    assert {(one.id, one.split, one.captions) for one in found} == {
        ("train/0.jpg", "train", ("disc train",)),
        ("test/0.jpg", "test", ("disc test",)),
    }


def test_the_images_of_a_split_are_in_its_folder(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "test")):
        draw(tmp_path / split, "0.jpg", "1.jpg", first=2 * n)
        write(tmp_path / f"{split}.csv", "image,caption", f"{n}.jpg,disc {split}")
    assert {(one.id, one.image) for one in read(tmp_path)} == {
        ("train/0.jpg", tmp_path / "train" / "0.jpg"),
        ("test/1.jpg", tmp_path / "test" / "1.jpg"),
    }


def test_which_of_two_folders_has_the_images_is_not_guessed(tmp_path: Path) -> None:
    for n, folder in enumerate(("images", "masks")):
        draw(tmp_path / folder, "0.jpg", first=n)
    table = write(tmp_path / "said.csv", "image,caption", "0.jpg,disc")
    with pytest.raises(DataError, match=r"image `0.jpg` is in .*images` and in .*masks`: say with"):
        read(table)
    (record,) = read(table, Options(tmp_path / "images"))
    assert record.image == tmp_path / "images" / "0.jpg"


# --- JSON that is an object ---------------------------------------------------------------------


def test_captions_by_image_of_a_json_object(tmp_path: Path) -> None:
    draw(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    draw(tmp_path / "a", "3.jpg", first=3)
    told = {"0.jpg": ["x", "y", "x"], "1.jpg": "z", "2.jpg": ["w", 3], "a/3.jpg": ["v"]}
    for source in (tmp_path / "said.json", tmp_path):
        text = json.dumps(told, indent=2).replace("a/3", r"a\/3")
        (tmp_path / "said.json").write_text(text)
        assert source_format(str(source), None) == "table"
        assert outcomes(source) == [["x", "y", "x"], ["z"], "caption 2 is not text (int)", ["v"]]
    write(tmp_path / "said.json", json.dumps({"a.jpg": "x", "0.jpg": ["y"]}))
    assert outcomes(tmp_path / "said.json") == ["missing file", ["y"]]


@pytest.mark.parametrize("told", [{"a": ["x"]}, {"0.jpg": [{"box": [1, 2]}]}, {"0.jpg": 3}])
def test_another_object_of_json_is_no_table(tmp_path: Path, told: Any) -> None:
    draw(tmp_path, "0.jpg")
    source = write(tmp_path / "said.json", json.dumps(told))
    with pytest.raises(DataError, match="is of no clear format"):
        source_format(str(source), None)
    with pytest.raises(DataError, match=r"list of objects, or an object of captions by image as"):
        list(SOURCES["table"](str(source), Options()))


def test_a_table_by_columns_is_refused_with_the_line_that_turns_it(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    draw(folder, "0.jpg", "1.jpg")
    columns = {"image": {"0": "0.jpg", "1": "1.jpg"}, "caption": {"0": "x", "1": "2024"}}
    source = write(folder / "said.json", json.dumps(columns))
    for given in (None, "table"):
        with pytest.raises(DataError, match="a table by columns") as caught:
            list(SOURCES[source_format(str(source), given)](str(source), Options()))
    (line,) = re.findall(r"`python (-c .*?)`, and read", str(caught.value))
    subprocess.run([sys.executable, *shlex.split(line)], check=True)
    assert outcomes(folder / "said.jsonl") == [["x"], ["2024"]]
