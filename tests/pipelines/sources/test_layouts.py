"""Layouts of folders that tools and data sets have: img2dataset's outputs, files beside images,
Flickr on Kaggle, CUB and Flowers."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.shards import __main__ as shards
from pipelines.shards.records import check
from pipelines.shards.survey import first_lines, look
from pipelines.sources.base import BadRecord, Options, RawRecord
from pipelines.sources.registry import SOURCES, source_format
from tests.pictures import draw, jpeg
from trainables.data.shards import ShardSet
from trainables.errors import DataError


def put(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def read(source: Path, expected: str, options: Options | None = None) -> list[RawRecord]:
    """All records; the format has to be found out."""
    assert source_format(str(source), None) == expected
    return list(SOURCES[expected](str(source), options or Options()))


def words(records: list[RawRecord]) -> dict[str, Any]:
    """Captions by id, or why there are none."""
    checked = {record.id: check(record, "source") for record in records}
    return {
        key: one.reason if isinstance(one, BadRecord) else one.row["captions"]
        for key, one in checked.items()
    }


# --- img2dataset --------------------------------------------------------------------------------

STATUS = ["success", "failed_to_download", "success", "failed_to_resize"]


def meta(part: int, number: int) -> dict[str, Any]:
    """As img2dataset keeps it of each address."""
    good = STATUS[number] == "success"
    return {
        "url": f"http://example.com/{part}/{number}.jpg",
        "caption": f"disc {part} {number}",
        "key": f"{part:05d}{number:04d}",
        "status": STATUS[number],
        "error_message": None if good else "HTTP Error 404: Not Found",
        "width": 24 if good else None,
        "height": 16 if good else None,
        "original_width": 24 if good else None,
        "original_height": 16 if good else None,
        "exif": "{}" if good else None,
        "sha256": "0" * 64 if good else None,
    }


def img2dataset(folder: Path, kind: str) -> Path:
    """Two parts of four addresses, half of which gave an image, in one of its output formats."""
    folder.mkdir()
    for part in range(2):
        rows = [meta(part, number) for number in range(4)]
        good = [(n, row) for n, row in enumerate(rows) if row["status"] == "success"]
        columns = pa.Table.from_pylist(rows)
        files = [
            (f"{row['key']}{ending}", content)
            for n, row in good
            for ending, content in (
                (".jpg", jpeg(10 * part + n)),
                (".txt", row["caption"].encode()),
                (".json", json.dumps(row, indent=4).encode()),
            )
        ]
        if kind == "parquet":
            images = [jpeg(10 * part + n) if (n, r) in good else None for n, r in enumerate(rows)]
            columns = columns.append_column("jpg", pa.array(images, pa.binary()))
        elif kind == "files":
            for name, content in files:
                put(folder / f"{part:05d}" / name, content)
        else:
            with tarfile.open(folder / f"{part:05d}.tar", "w") as tar:
                for name, content in files:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        pq.write_table(columns, folder / f"{part:05d}.parquet")
        stats = {"count": 4, "successes": 2, "failed_to_download": 1, "failed_to_resize": 1}
        put(folder / f"{part:05d}_stats.json", json.dumps(stats))
    return folder


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "files"])
def test_outputs_of_img2dataset(tmp_path: Path, kind: str) -> None:
    options = Options()
    found = read(img2dataset(tmp_path / "out", kind), "img2dataset", options)
    assert [*words(found).values()] == [[f"disc {p} {n}"] for p in range(2) for n in (0, 2)]
    assert [Path(one.id).stem[-4:] for one in found] == ["0000", "0002"] * 2
    assert options.tally.left_out == {
        "img2dataset: failed_to_download": 2,
        "img2dataset: failed_to_resize": 2,
    }
    assert {one.split for one in found} == {None}


# --- files of one name --------------------------------------------------------------------------


def test_words_beside_their_images(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "b.JPG", "deep/c.png", "d.jpg", "e.jpg", "f.jpg")
    put(tmp_path / "a.txt", "a disc\nred\n")
    put(tmp_path / "b.json", json.dumps({"caption": "b", "width": 3}))
    put(tmp_path / "deep" / "c.TXT", "deep")
    put(tmp_path / "e.txt", "0 0.5 0.5 0.25 0.25\n")  # a box
    put(tmp_path / "f.txt", "")
    put(tmp_path / "g.txt", "of no image")
    options = Options()
    assert words(read(tmp_path, "sidecar", options)) == {
        "a.jpg": ["a disc", "red"],
        "b.JPG": ["b"],
        "d.jpg": "no caption and no class name",
        "deep/c.png": ["deep"],
        "e.jpg": "`e.txt` has numbers and no words",
        "f.jpg": "caption 1 is empty",
    }
    assert options.tally.ignored == {".txt": 1}
    assert options.tally.read == {".jpg": 5, ".txt": 4, ".json": 1, ".png": 1}


def test_a_text_that_windows_marked(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg")
    put(tmp_path / "a.txt", "\ufeffa disc\r\nred\r\n")
    assert words(read(tmp_path, "sidecar")) == {"a.jpg": ["a disc", "red"]}


def test_folders_of_splits_with_words_beside_images(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "valid", "test")):
        draw(tmp_path / split, f"{n}.jpg", first=n)
        put(tmp_path / split / f"{n}.txt", f"disc {n}")
    found = list(SOURCES["sidecar"](str(tmp_path), Options()))
    assert Counter(one.split for one in found) == {"train": 1, "val": 1, "test": 1}


def test_words_are_of_the_image_of_exactly_their_name(tmp_path: Path) -> None:
    draw(tmp_path, "A.jpg", "a.jpg", "B.jpg", "c.jpg", "c.png")
    for name in ("A.txt", "a.txt", "b.txt", "c.txt"):
        put(tmp_path / name, f"said in {name}")
    several = "2 images have the name of `c.txt`"
    assert words(read(tmp_path, "sidecar")) == {
        "A.jpg": ["said in A.txt"],
        "a.jpg": ["said in a.txt"],
        "B.jpg": ["said in b.txt"],
        "c.jpg": several,
        "c.png": several,
    }


# --- split lists --------------------------------------------------------------------------------


def test_names_in_a_split_list_without_captions_are_counted(tmp_path: Path) -> None:
    draw(tmp_path / "images", "0.jpg")
    put(tmp_path / "x.token.txt", "0.jpg#0\ta disc\n")
    put(tmp_path / "trainImages.txt", "0.jpg\n\n")
    put(tmp_path / "testImages.txt", "1.jpg\n2.jpg\n\n")
    options = Options()
    assert [one.split for one in read(tmp_path, "flickr_token", options)] == ["train"]
    assert options.tally.ignored == {"name in a split list without captions": 2}


def test_splits_by_class_of_cub(tmp_path: Path) -> None:
    for n, name in enumerate(("001.A", "002.B", "003.C", "004.D")):
        draw(tmp_path / "images" / name, f"{n}.jpg", first=n)
        put(tmp_path / "text_c10" / name / f"{n}.txt", "a bird")
    put(tmp_path / "trainvalclasses.txt", "001.A\n002.B\n")
    put(tmp_path / "testclasses.txt", "003.C\n")
    options = Options()
    found = read(tmp_path, "text_folder", options)
    assert [(one.class_name, one.label, one.split) for one in found] == [
        ("A", 0, "train"),
        ("B", 1, "train"),
        ("C", 2, "test"),
    ]
    assert options.tally.left_out == {"class in no split list": 1}
    assert +options.tally.ignored == {}
    put(tmp_path / "trainclasses.txt", "001.A\n")
    put(tmp_path / "valclasses.txt", "002.B\n")
    splits = [one.split for one in read(tmp_path, "text_folder")]
    assert splits == ["train", "val", "test"]
    lines = list(first_lines(str(tmp_path), "text_folder", "source", found))
    assert lines[0].startswith("splits: by name, train (trainclasses.txt), val (valclasses.txt)")


def cub(root: Path) -> None:
    """Six birds of three classes, as CUB_200_2011.tgz has them."""
    names = [f"00{n // 2 + 1}.{'ABC'[n // 2]}/bird {n}.jpg" for n in range(6)]
    for n, name in enumerate(names):
        draw(root / "images" / Path(name).parent, Path(name).name, first=n)
    put(root / "images.txt", "".join(f"{n} {name}\n" for n, name in enumerate(names, 1)))
    put(root / "train_test_split.txt", "".join(f"{n} {n % 2}\n" for n in range(1, 6)))
    put(root / "image_class_labels.txt", "".join(f"{n + 1} {n // 2 + 1}\n" for n in range(6)))
    put(root / "classes.txt", "1 001.A\n2 002.B\n3 003.C\n")


@pytest.mark.parametrize("place", [".", "CUB_200_2011"])
def test_the_official_split_of_cub(tmp_path: Path, place: str) -> None:
    cub(tmp_path / place)
    for image in (tmp_path / place).glob("images/*/*.jpg"):
        put(tmp_path / "text_c10" / image.parent.name / f"{image.stem}.txt", "a bird")
    options = Options()
    found = read(tmp_path, "text_folder", options)
    assert [(one.id, one.class_name, one.label, one.split) for one in found] == [
        ("001.A/bird 0.jpg", "A", 0, "train"),
        ("001.A/bird 1.jpg", "A", 0, "test"),
        ("002.B/bird 2.jpg", "B", 1, "train"),
        ("002.B/bird 3.jpg", "B", 1, "test"),
        ("003.C/bird 4.jpg", "C", 2, "train"),
    ]
    assert options.tally.left_out == {"in no split list": 1}
    assert +options.tally.ignored == {}
    lines = list(look(str(tmp_path), "text_folder", Options(), "source"))
    assert "splits: by `train_test_split.txt`" in lines
    (of_files,) = [line for line in lines if line.startswith("not read: ")]
    assert of_files == "not read: 2 .txt"
    put(tmp_path / "trainclasses.txt", "001.A\n002.B\n")
    put(tmp_path / "testclasses.txt", "003.C\n")
    options = Options()
    splits = [one.split for one in read(tmp_path, "text_folder", options)]
    assert splits == ["train"] * 4 + ["test"] * 2
    assert options.notes == {"splits by the lists of classes, not by `train_test_split.txt`": 1}


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("train_test_split.txt", "7 1", "line 6: image 7 must be in `images.txt`, and is not"),
        ("train_test_split.txt", "6 2", "line 6: whether to train on .* must be 1 or 0, got '2'"),
        ("train_test_split.txt", "6", "line 6: must be a number and a word, got '6'"),
        ("images.txt", "2 002.B/x.jpg", "line 7: image 2 is in line 2"),
    ],
)
def test_a_damaged_split_of_cub(tmp_path: Path, file: str, line: str, reason: str) -> None:
    cub(tmp_path)
    put(tmp_path / "text" / "001.A" / "bird 0.txt", "a bird")
    with (tmp_path / file).open("a") as out:
        out.write(f"{line}\n")
    with pytest.raises(DataError, match=rf"`.*{file}`, {reason}"):
        read(tmp_path, "text_folder")


# --- Flickr as Kaggle has it --------------------------------------------------------------------


def test_flickr8k_of_kaggle(tmp_path: Path) -> None:
    draw(tmp_path / "Images", "1_a.jpg", "2_b.jpg")
    lines = [
        "image,caption",
        "1_a.jpg,A child in a pink dress .",
        '1_a.jpg,"A girl , going in ."',
        '2_b.jpg,"""A dog"" is ."',
    ]
    put(tmp_path / "captions.txt", "\n".join(lines) + "\n")
    assert words(read(tmp_path, "table")) == {
        "1_a.jpg": ["A child in a pink dress .", "A girl , going in ."],
        "2_b.jpg": ['"A dog" is .'],
    }


def test_flickr30k_of_kaggle(tmp_path: Path) -> None:
    """One of its 158,915 rows lacks a bar: it is quarantined, and takes no other with it."""
    draw(tmp_path / "flickr30k_images", "1.jpg", "2199200615.jpg", "3.jpg")
    lines = [
        "image_name| comment_number| comment",
        '1.jpg| 0| Two young guys with "shaggy hair .',
        "1.jpg| 1| Two men , one | in green .",
        "2199200615.jpg| 0| A dog .",
        "2199200615.jpg| 4   A dog runs across the grass .",
        '3.jpg| 0| "A man" smiles .',
    ]
    put(tmp_path / "results.csv", "\n".join(lines) + "\n")
    options = Options()
    assert words(read(tmp_path, "table", options)) == {
        "1.jpg": ['Two young guys with "shaggy hair .'],
        "row 3": "4 cells where the header has 3",
        "2199200615.jpg": ["A dog ."],
        "row 5": "2 cells where the header has 3",
        "3.jpg": ['"A man" smiles .'],
    }
    assert options.notes == {"column 'comment_number' numbers rows and is left out": 1}


# --- CUB and Flowers ----------------------------------------------------------------------------


def test_captions_of_cub(tmp_path: Path) -> None:
    names = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    for n, name in enumerate(names):
        draw(tmp_path / "images" / name, f"bird_{n}.jpg", first=n)
        put(tmp_path / "text" / name / f"bird_{n}.txt", f"bird {n}\n\nit is black\n")
    draw(tmp_path / "images" / names[0], "bird_9.jpg", first=9)
    put(tmp_path / "text" / names[1] / "lost.txt", "of no image")
    options = Options()
    found = read(tmp_path, "text_folder", options)
    assert words(found) == {
        f"{names[0]}/bird_0.jpg": ["bird 0", "it is black"],
        f"{names[1]}/bird_1.jpg": ["bird 1", "it is black"],
        f"{names[1]}/lost.txt": "no image of its name",
    }
    classes = [(one.label, one.class_name) for one in found[:2]]
    assert classes == [(0, "Black_footed_Albatross"), (1, "Laysan_Albatross")]
    assert options.tally.ignored == {"image without a text": 1}


def test_captions_of_flowers(tmp_path: Path) -> None:
    draw(tmp_path / "jpg", "image_00001.jpg", "image_00002.jpg")
    for n in (1, 2):
        folder = tmp_path / "text_c10" / f"class_{n:05d}"
        put(folder / f"image_{n:05d}.txt", f"flower {n}\nred petals\n")
        put(folder.with_suffix(".t7"), b"T7")
    found = read(tmp_path, "text_folder")
    assert words(found) == {f"image_{n:05d}.jpg": [f"flower {n}", "red petals"] for n in (1, 2)}
    assert [one.label for one in found] == [0, 1]
    texts, images = tmp_path / "text_c10", tmp_path / "elsewhere"
    (tmp_path / "jpg").rename(images)
    with pytest.raises(DataError, match=r"must have a folder of images, one of `images`, `jpg`"):
        list(SOURCES["text_folder"](str(texts), Options()))
    again = list(SOURCES["text_folder"](str(texts), Options(images)))
    assert [(one.id, one.captions) for one in again] == [(one.id, one.captions) for one in found]
    assert all(isinstance(captions, list) for captions in words(again).values())


def test_texts_in_no_class_have_none(tmp_path: Path) -> None:
    draw(tmp_path / "images", "0.jpg", "1.jpg")
    for n in range(2):
        put(tmp_path / "captions" / f"{n}.txt", f"disc {n}")
    found = read(tmp_path, "text_folder")
    assert words(found) == {"0.jpg": ["disc 0"], "1.jpg": ["disc 1"]}
    assert {one.class_name for one in found} == {None}


# --- classes of COCO ----------------------------------------------------------------------------


def instances(images: dict[int, str], *objects: tuple[int, int, float, int]) -> str:
    """Objects are of image, category, area and crowd."""
    return json.dumps(
        {
            "images": [{"id": key, "file_name": name} for key, name in images.items()],
            "annotations": [
                {"image_id": i, "category_id": c, "area": a, "iscrowd": crowd, "bbox": [0, 0, 1, 1]}
                for i, c, a, crowd in objects
            ],
            "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        }
    )


OBJECTS = ((1, 18, 5.0, 0), (1, 3, 9.0, 0), (1, 18, 99.0, 1), (2, 18, 1.0, 0), (2, 18, 2.0, 0))


def test_classes_of_coco_by_the_largest_object(tmp_path: Path) -> None:
    draw(tmp_path / "train2017", "1.jpg", "2.jpg", "3.jpg")
    images = {n: f"{n}.jpg" for n in (1, 2, 3)}
    put(tmp_path / "annotations" / "instances_train2017.json", instances(images, *OBJECTS))
    source, options = tmp_path / "annotations", Options()
    found = read(source, "coco", options)
    assert [(one.id, one.label, one.class_name) for one in found] == [
        ("1.jpg", 0, "car"),
        ("2.jpg", 1, "dog"),
    ]
    assert {one.split for one in found} == {"train"}
    assert all(isinstance(one.image, Path) and one.image.is_file() for one in found)
    assert options.notes == {"the largest object's class of several": 1}
    assert options.tally.left_out == {"no object": 1}
    assert options.tally.ignored["crowd"] == 1
    alone = Options(multi_label="drop")
    found = read(source / "instances_train2017.json", "coco", alone)
    assert [(one.id, one.class_name) for one in found] == [("2.jpg", "dog")]
    assert alone.tally.left_out == {"objects of several classes": 1, "no object": 1}


def test_odd_objects_of_coco(tmp_path: Path) -> None:
    draw(tmp_path, "1.jpg")
    value = json.loads(instances({1: "1.jpg"}, (1, 7, 1.0, 0)))
    value["annotations"] += [{"image_id": 1}, {"image_id": 1, "category_id": "dog"}, 5]
    put(tmp_path / "instances_val.json", json.dumps(value))
    assert words(list(SOURCES["coco"](str(tmp_path), Options()))) == {
        "annotation 2": "no `category_id`",
        "annotation 3": "`category_id` is not a number",
        "annotation 4": "`category_id` is not a number",
        "1.jpg": "category 7 is not in `categories`",
    }


def test_coco_as_roboflow_exports_it(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "valid", "test"), 1):
        draw(tmp_path / split, f"{n}.jpg", first=n)
        put(tmp_path / split / "_annotations.coco.json", instances({n: f"{n}.jpg"}, (n, 3, 1.0, 0)))
    found = list(SOURCES["coco"](str(tmp_path), Options()))
    assert {one.id: one.split for one in found} == {
        "1.jpg": "train",
        "2.jpg": "val",
        "3.jpg": "test",
    }
    assert all(isinstance(one.image, Path) and one.image.is_file() for one in found)


def test_the_flag_of_several_labels_is_part_of_what_shards_are_made_of(tmp_path: Path) -> None:
    draw(tmp_path / "source", "1.jpg", "2.jpg")
    text = instances({n: f"{n}.jpg" for n in (1, 2)}, *OBJECTS)
    put(tmp_path / "source" / "instances_train.json", text)
    out = tmp_path / "out"
    shards.run(shards.Args(str(tmp_path / "source"), out))
    assert ShardSet.open(out).classes == {"car": 0, "dog": 1}
    again = shards.Args(str(tmp_path / "source"), out, multi_label="drop", overwrite=True)
    shards.run(again)
    assert ShardSet.open(out).manifest["counts"]["left_out"] == {"objects of several classes": 1}
    assert ShardSet.open(out).classes == {"dog": 1}
