"""Folders of images that may be read in two ways: nothing is guessed, and what to type is said."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipelines.sources.base import BadRecord, Options, RawRecord
from pipelines.sources.registry import SOURCES, source_format
from pipelines.sources.webdataset import tars
from tests.pictures import jpeg
from trainables.errors import DataError


def put(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def pictures(folder: Path, count: int, first: int = 0) -> None:
    for n in range(first, first + count):
        put(folder / f"{n}.jpg", jpeg(n))


def refused(source: Path) -> str:
    with pytest.raises(DataError) as caught:
        source_format(str(source), None)
    return str(caught.value)


def typed(said: str) -> list[RawRecord]:
    """The records of the command that a refusal names."""
    (words,) = re.findall(r"`(--source [^`]*)`", said)
    flags = dict(zip(*[iter(shlex.split(words))] * 2, strict=True))
    images = flags.get("--images")
    options = Options(Path(images) if images else None)
    return list(SOURCES[flags["--format"]](flags["--source"], options))


def test_a_table_of_captions_among_the_images(tmp_path: Path) -> None:
    pictures(tmp_path / "Images", 3)
    lines = [f"{n}.jpg,a disc\n{n}.jpg,number {n}\n" for n in range(3)]
    put(tmp_path / "Images" / "captions.txt", "image,caption\n" + "".join(lines))
    put(tmp_path / "README.md", "of no consequence")
    put(tmp_path / "LICENSE.txt", "of no consequence")
    said = refused(tmp_path)
    assert (
        "has folders (Images) and `Images/captions.txt`, which may hold captions or labels" in said
    )
    assert "Type `--format folder` if they are" in said
    found = typed(said)
    assert [record.captions for record in found] == [("a disc", f"number {n}") for n in range(3)]


def test_the_root_of_coco(tmp_path: Path) -> None:
    for part, first in (("train2014", 0), ("val2014", 3)):
        pictures(tmp_path / part, 3, first)
        images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(first, first + 3)]
        notes = [{"image_id": n, "caption": f"disc {n}"} for n in range(first, first + 3)]
        value = {"images": images, "annotations": notes}
        put(tmp_path / "annotations" / f"captions_{part}.json", json.dumps(value))
    found = typed(refused(tmp_path))
    assert Counter(record.split for record in found) == {"train": 3, "val": 3}
    assert all(len(record.captions) == 1 for record in found)


def test_karpathys_json_beside_its_images(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 2)
    entries = [
        {"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": f"disc {n}"}]}
        for n in range(2)
    ]
    put(tmp_path / "dataset.json", json.dumps({"images": entries}))
    found = typed(refused(tmp_path))
    assert [record.captions for record in found] == [("disc 0",), ("disc 1",)]


def test_a_table_in_each_splits_folder_tells_its_split(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        pictures(tmp_path / split, count, 10 * count)
        lines = [f"{n}.jpg,a disc\n" for n in range(10 * count, 11 * count)]
        put(tmp_path / split / "metadata.csv", "file_name,text\n" + "".join(lines))
    found = typed(refused(tmp_path))
    assert Counter(record.split for record in found) == {"train": 4, "test": 2}


def test_files_beside_images_of_a_class_that_tell_no_format(tmp_path: Path) -> None:
    pictures(tmp_path / "cup", 2)
    put(tmp_path / "cup" / "list.json", '{"caption": "a cup"}')
    said = refused(tmp_path)
    assert "`cup/list.json`" in said
    assert said.endswith("else another `--format`.")


def test_words_of_the_images_names_beside_them(tmp_path: Path) -> None:
    pictures(tmp_path / "cup", 2)
    for n in range(2):
        put(tmp_path / "cup" / f"{n}.json", json.dumps({"caption": f"disc {n}"}))
    found = typed(refused(tmp_path))
    assert [record.captions for record in found] == [("disc 0",), ("disc 1",)]


def test_a_format_that_was_given_is_taken(tmp_path: Path) -> None:
    pictures(tmp_path / "Images", 3)
    put(tmp_path / "captions.txt", "image,caption\n")
    assert source_format(str(tmp_path), "folder") == "folder"
    found = list(SOURCES["folder"](str(tmp_path), Options()))
    assert [record.class_name for record in found] == ["Images"] * 3


def test_images_of_a_class_may_lie_deeper(tmp_path: Path) -> None:
    for split, here, deeper in (("train", 1, 2), ("test", 1, 1)):
        for label, name in enumerate(("cup", "plate")):
            pictures(tmp_path / split / name, here, 10 * label)
            pictures(tmp_path / split / name / "camera-2" / "raw", deeper, 100)
            put(tmp_path / split / name / "camera-2" / "notes.doc", "x")
            pictures(tmp_path / split / name / ".thumbnails", 1)
    options = Options()
    found = list(SOURCES["folder"](str(tmp_path), options))
    assert Counter((r.split, r.class_name, r.label) for r in found) == {
        ("train", "cup", 0): 3,
        ("train", "plate", 1): 3,
        ("test", "cup", 0): 2,
        ("test", "plate", 1): 2,
    }
    assert len({record.id for record in found}) == len(found)
    assert options.tally.ignored == {".doc": 4, "hidden": 4}


def test_splits_beside_what_is_none_are_no_classes(tmp_path: Path) -> None:
    for name in ("train", "test"):
        pictures(tmp_path / name / "cup", 1)
    pictures(tmp_path / "unlabeled", 2)
    with pytest.raises(DataError, match=r"has splits \(test, train\) and beside them `unlabeled`"):
        list(SOURCES["folder"](str(tmp_path), Options()))


def test_one_split_with_classes_in_it_beside_what_is_none_is_no_class(tmp_path: Path) -> None:
    for n, name in enumerate(("cat", "dog")):
        pictures(tmp_path / "train" / name, 2, 2 * n)
    pictures(tmp_path / "unlabeled" / "part", 2, 9)
    with pytest.raises(DataError, match=r"has splits \(train\) and beside them `unlabeled`"):
        list(SOURCES["folder"](str(tmp_path), Options()))


@pytest.mark.parametrize("inner", ["flowers", "data/flowers"])
def test_a_folder_around_the_classes_is_no_class(tmp_path: Path, inner: str) -> None:
    for n, name in enumerate(("rose", "tulip")):
        pictures(tmp_path / inner / name, 2, 2 * n)
    with pytest.raises(DataError, match="it is not guessed that all is of one class") as caught:
        list(SOURCES["folder"](str(tmp_path), Options()))
    assert f"`--source {tmp_path / Path(inner).parts[0]}`" in str(caught.value)


def test_one_folder_of_images_is_no_classes(tmp_path: Path) -> None:
    """As Flowers-102 is given, whose labels are in files that are not read."""
    pictures(tmp_path / "jpg", 3)
    put(tmp_path / "imagelabels.mat", "x")
    said = refused(tmp_path)
    assert said.startswith(f"`{tmp_path}` has one folder, `jpg`, and one class is no classes.")
    assert f"`--source {tmp_path / 'jpg'}`" in said
    pictures(tmp_path / "train" / "cup", 2, 5)
    shutil.rmtree(tmp_path / "jpg")
    assert source_format(str(tmp_path), None) == "folder"


def test_images_beside_their_masks_are_no_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    pictures(tmp_path / "masks", 3, 3)
    said = refused(tmp_path)
    assert said.startswith(f"`{tmp_path}` has folders, and one is called `images`:")
    assert f"`--source {tmp_path / 'images'}`" in said
    assert source_format(str(tmp_path), "folder") == "folder"


def test_trains_are_a_class(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 2)
    pictures(tmp_path / "plane" / "of_paper", 2, 2)
    found = list(SOURCES["folder"](str(tmp_path), Options()))
    assert {one.class_name for one in found} == {"train", "plane"}


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".cache/x", "__MACOSX"])
def test_what_lies_in_hidden_folders_is_not_read(tmp_path: Path, hidden: str) -> None:
    pictures(tmp_path / "images", 3)
    for place, word in (("", "new"), (hidden, "old")):
        lines = [f"{n}.jpg,{word} {n}\n" for n in range(3)]
        put(tmp_path / place / "captions.csv", "image,caption\n" + "".join(lines))
    assert source_format(str(tmp_path), None) == "table"
    found = list(SOURCES["table"](str(tmp_path), Options()))
    assert [(one.id, one.captions) for one in found] == [
        (f"{n}.jpg", (f"new {n}",)) for n in range(3)
    ]
    put(tmp_path / "tars" / hidden / "old.tar", "")
    put(tmp_path / "tars" / "new.tar", "")
    assert [one.name for one in tars(str(tmp_path / "tars"))] == ["new.tar"]


def test_folders_called_as_splits_by_a_word(tmp_path: Path) -> None:
    for n, split in enumerate(("train_images", "test_images")):
        for m, name in enumerate(("cat", "dog")):
            pictures(tmp_path / split / name, 2, 10 * n + 2 * m)
    assert source_format(str(tmp_path), None) == "folder"
    found = list(SOURCES["folder"](str(tmp_path), Options()))
    assert Counter((one.split, one.class_name, one.label) for one in found) == {
        (split, name, label): 2
        for split in ("train", "test")
        for label, name in enumerate(("cat", "dog"))
    }
    pictures(tmp_path / "unlabeled", 1, 90)
    with pytest.raises(DataError, match=r"has splits \(test_images, train_images\) and beside"):
        list(SOURCES["folder"](str(tmp_path), Options()))


def test_classes_with_a_split_for_a_word_are_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "test_tube", 2)
    pictures(tmp_path / "dev_board", 2, 2)
    found = list(SOURCES["folder"](str(tmp_path), Options()))
    assert {one.class_name for one in found} == {"test_tube", "dev_board"}


def test_a_split_in_itself_is_no_class(tmp_path: Path) -> None:
    for split in ("training_set", "test_set"):
        pictures(tmp_path / split / split / "cat", 1)
    with pytest.raises(DataError) as caught:
        list(SOURCES["folder"](str(tmp_path), Options()))
    (line,) = re.findall(r"`(mv [^`]*)`", str(caught.value))
    assert line.split()[1] == f"{tmp_path}/test_set/test_set/*"


def test_boxes_beside_images_are_no_class(tmp_path: Path) -> None:
    pictures(tmp_path / "images" / "train", 2)
    put(tmp_path / "labels" / "train" / "0.txt", "0 0.5 0.5 0.1 0.1\n")
    assert "`labels/train/0.txt`, which may hold captions or labels" in refused(tmp_path)


def test_one_file_of_several_that_tells_no_split(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    for name in ("train", "test", "sample_submission"):
        put(tmp_path / f"{name}.csv", "image,caption\n0.jpg,x\n")
    with pytest.raises(DataError, match=r"`sample_submission.csv` tells no split, and that of `te"):
        list(SOURCES["table"](str(tmp_path), Options()))


def test_links_into_the_folder_that_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "store", 1)
    (tmp_path / "source" / "cat").mkdir(parents=True)
    (tmp_path / "source" / "cat" / "0.jpg").symlink_to(tmp_path / "store" / "0.jpg")
    for images, good in ((None, False), (tmp_path / "store", True), (tmp_path / "other", False)):
        (record,) = SOURCES["folder"](str(tmp_path / "source"), Options(images))
        assert isinstance(record.image, Path) is good


def test_words_and_folders_of_links(tmp_path: Path) -> None:
    """A text is no more followed out of its folder than an image; a link to a folder is counted."""
    pictures(tmp_path / "store", 2)
    for name in ("0.txt", "1.txt"):
        put(tmp_path / "store" / name, "a secret\n")
    beside, birds = tmp_path / "beside", tmp_path / "birds"
    for folder in (beside, birds / "images" / "cat", birds / "text" / "cat"):
        folder.mkdir(parents=True)
    for name in ("0.jpg", "0.txt", "1.jpg", "1.txt"):
        (beside / name).symlink_to(tmp_path / "store" / name)
    shutil.copy(tmp_path / "store" / "0.jpg", birds / "images" / "cat")
    (birds / "text" / "cat" / "0.txt").symlink_to(tmp_path / "store" / "0.txt")
    (beside / "more").symlink_to(tmp_path / "store")
    for name, source, records in (("sidecar", beside, 2), ("text_folder", birds, 1)):
        found = list(SOURCES[name](str(source), Options()))
        assert len(found) == records
        for record in found:
            assert record.captions == ()
            assert isinstance(record.image, BadRecord)
            assert "leaves the folder by a link: say with --images where to" in record.image.reason
    options = Options(tmp_path / "store")
    found = list(SOURCES["sidecar"](str(beside), options))
    assert [record.captions for record in found] == [(b"a secret",)] * 2
    assert [record.image for record in found] == [beside / "0.jpg", beside / "1.jpg"]
    assert options.tally.ignored == {"link to a folder": 1}


def test_the_parquet_files_of_the_hub_know_the_names_of_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    for n, split in enumerate(("train", "test")):
        image = {"bytes": jpeg(n), "path": None}
        data = datasets.Dataset.from_dict({"image": [image], "label": [1]}, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    found = typed(refused(tmp_path))
    assert {(one.split, one.class_name, one.label) for one in found} == {
        ("train", "dog", 1),
        ("test", "dog", 1),
    }


def test_of_tables_of_two_kinds_it_is_said_how_to_read_one(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", "image,caption\n0.jpg,x\n")
    put(tmp_path / "b.jsonl", '{"image": "0.jpg", "caption": "y"}\n')
    with pytest.raises(DataError) as caught:
        list(SOURCES["table"](str(tmp_path), Options()))
    (line,) = re.findall(r"`--source ([^`]*)`", str(caught.value))
    (record,) = SOURCES["table"](line, Options())
    assert record.captions == ("x",)
