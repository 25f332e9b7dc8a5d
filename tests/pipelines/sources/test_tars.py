"""Tars as people make them: the members of a sample apart, lists of captions, odd endings."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipelines.shards.survey import first_lines
from pipelines.sources.base import BadRecord, Options, RawRecord
from pipelines.sources.registry import SOURCES, source_format
from tests.pictures import jpeg
from trainables.errors import DataError


def tar(path: Path, members: list[tuple[str, bytes]], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def read(source: Path, options: Options | None = None) -> list[RawRecord]:
    name = source_format(str(source), None)
    assert name == "webdataset"
    return list(SOURCES[name](str(source), options or Options()))


LONG = "n" * 150  # a name for which a tar has a header of its own


def apart() -> list[tuple[str, bytes]]:
    """All images, then all texts, as `tar cf x.tar *.jpg *.txt` has them."""
    names = [f"{LONG}{n}" for n in range(4)]
    images = [(f"{name}.jpg", jpeg(n)) for n, name in enumerate(names)]
    return images + [(f"{name}.txt", f"disc {n}".encode()) for n, name in enumerate(names)]


def test_members_of_a_sample_that_lie_apart_are_read(tmp_path: Path) -> None:
    found = read(tar(tmp_path / "x.tar", apart()))
    assert [one.captions for one in found] == [(f"disc {n}".encode(),) for n in range(4)]
    assert [one.image for one in found] == [jpeg(n) for n in range(4)]


def test_in_one_tar_they_lie_apart_in_another_not(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", apart())
    tar(tmp_path / "b.tar", sorted(apart()))
    found = read(tmp_path)
    assert [one.captions for one in found[:4]] == [one.captions for one in found[4:]]
    assert len({one.id for one in found}) == 8


@pytest.mark.parametrize(("mode", "ending"), [("w:gz", "gz"), ("w:bz2", "bz2"), ("w:xz", "xz")])
def test_in_a_packed_tar_it_is_said_what_to_type(tmp_path: Path, mode: str, ending: str) -> None:
    path = tar(tmp_path / f"x y.tar.{ending}", apart(), mode)
    with pytest.raises(DataError, match=r"do not follow each other") as caught:
        read(path)
    *_, command = str(caught.value).split("`")[:-1]
    subprocess.run(shlex.split(command), check=True)
    assert len(read(tmp_path / "x y.tar")) == 4
    assert len(read(tar(tmp_path / f"in order.tar.{ending}", sorted(apart()), mode))) == 4


def test_a_key_that_comes_twice_is_no_two_samples_in_silence(tmp_path: Path) -> None:
    members = [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("b.txt", b"b"), ("a.jpg", jpeg(2))]
    first, second = read(tar(tmp_path / "x.tar", [*members, ("a.txt", b"a")]))
    assert first.image == BadRecord("two members are its image")
    assert second.captions == (b"b",)


@pytest.mark.parametrize("ending", ["JPG", "jfif", "JFIF", "Png"])
def test_endings_of_members_and_of_tars(tmp_path: Path, ending: str) -> None:
    members = [(f"a.{ending}", jpeg(0)), ("a.TXT", b"a disc")]
    (found,) = read(tar(tmp_path / "x.TAR", members))
    assert (found.image, found.captions) == (jpeg(0), (b"a disc",))
    assert read(tmp_path)[0].id == "a"


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
def test_a_member_with_a_list_of_captions(tmp_path: Path, name: str) -> None:
    text = '["a disc", "red"]'
    content = text if name == "a.txt" else json.dumps({"caption": text})
    (found,) = read(tar(tmp_path / "x.tar", [("a.jpg", jpeg(0)), (name, content.encode())]))
    assert found.captions == ("a disc", "red")


def test_tars_in_folders_of_splits(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "test")):
        (tmp_path / split).mkdir()
        tar(tmp_path / split / "0.tar", [("0.jpg", jpeg(n)), ("0.txt", b"disc")])
    assert {one.id: one.split for one in read(tmp_path)} == {
        "train/0/0": "train",
        "test/0/0": "test",
    }
    said = list(first_lines(str(tmp_path), "webdataset", "source", read(tmp_path)))
    assert said[0] == "splits: by name, test (test/0.tar), train (train/0.tar)"


def test_classes_by_name_or_by_number(tmp_path: Path) -> None:
    names = [("0.jpg", jpeg(0)), ("0.cls", b"cat\n"), ("1.jpg", jpeg(1)), ("1.cls", b"3")]
    path = tar(tmp_path / "x.tar", names)
    assert [(one.class_name, one.label) for one in read(path)] == [("cat", None), (None, 3)]
    options = Options(columns={"image": ["jpg"], "class_name": ["cls"]})
    assert [one.class_name for one in read(path, options)] == ["cat", "3"]
