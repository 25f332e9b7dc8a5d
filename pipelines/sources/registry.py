"""The formats by name, and the format that a source looks like.

Flows in: a source. Flows out: the name of its format, or an error where that is not clear.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.console import word
from pipelines.sources import (
    coco,
    flickr_token,
    folder,
    huggingface,
    img2dataset,
    karpathy,
    lance,
    sidecar,
    table,
    text_folder,
    webdataset,
    zhou,
)
from pipelines.sources.base import (
    MEDIA_SUFFIXES,
    Options,
    RawRecord,
    hidden,
    image_files,
    stem_and_ending,
    visible,
)
from pipelines.sources.json_stream import entries, names_images
from trainables.errors import DataError, unknown

SOURCES: dict[str, Callable[[str, Options], Iterator[RawRecord]]] = {
    "karpathy": karpathy.read,
    "coco": coco.read,
    "flickr_token": flickr_token.read,
    "table": table.read,
    "folder": folder.read,
    "sidecar": sidecar.read,
    "text_folder": text_folder.read,
    "zhou": zhou.read,
    "webdataset": webdataset.read,
    "img2dataset": img2dataset.read,
    "lance": lance.read,
    "huggingface": huggingface.read,
}


def source_format(source: str, given: str | None) -> str:
    """The format `given`, or what `source` looks like; a `DataError` where that is not clear."""
    return recognised(source, given)[0]


def recognised(source: str, given: str | None) -> tuple[str, str]:
    """`source_format`, with the reason in words."""
    if given is not None:
        if given not in SOURCES:
            raise DataError(unknown("format", given, SOURCES))
        return given, "as `--format` says"
    path = Path(source)
    guess = _of_folder(path) if path.is_dir() else _of_file(path)
    if guess is None and not path.exists():
        if webdataset.tars(source):
            return "webdataset", "it is a pattern that tars match"
        if source.count("/") == 1 and not path.suffix and not source.startswith((".", "/")):
            return "huggingface", "it is no path here, but `owner/name`"
        raise DataError(f"`{source}` does not exist.")
    if guess is None:
        choices = ", ".join(f"`{name}`" for name in SOURCES)
        raise DataError(f"`{source}` is of no clear format; say it with `--format`: {choices}.")
    return guess


_TOKEN = (".token", ".token.txt")
# What a folder of a format has in it; the first of these decides.
SIGNS: dict[str, Callable[[Path], bool]] = {
    "huggingface": lambda path: path.name in ("dataset_dict.json", "state.json"),
    "webdataset": lambda path: webdataset.is_tar(path.name),
    "coco": lambda path: _is_coco(path.name.lower()),
    "flickr_token": lambda path: path.name.lower().endswith(_TOKEN),
    "table": table.is_table,
}


def _is_coco(name: str) -> bool:
    return name.startswith(("captions_", "instances_")) and name.endswith(".json")


def _of_folder(path: Path) -> tuple[str, str] | None:
    if lance.table_of(path):
        return "lance", "it is laid out as Lance's tables are, or holds one"
    if img2dataset.is_output(path):
        return "img2dataset", "it holds `*_stats.json`, as img2dataset writes them"
    if text_folder.is_layout(path):
        return "text_folder", "it holds a folder of texts and one of images"
    paths = _but_images(path)
    for name, sign in SIGNS.items():
        if found := next(filter(sign, paths), None):
            return name, f"it holds `{found.name}`"
    if words := sidecar.of_images(path):
        return "sidecar", f"it holds `{words.name}` beside an image of its name"
    folders = [one for one in paths if one.is_dir()]
    if not folders:
        return None
    tars = (f"{one.name}/{name}" for one in folders for name in visible(one))
    if tar := next(filter(webdataset.is_tar, tars), None):
        return "webdataset", f"it holds `{tar}`"
    _refuse_two_readings(path)
    if len(folders) == 1 and not folder.split_folders(path):
        raise DataError(
            f"`{path}` has one folder, `{folders[0].name}`, and one class is no classes. Type "
            f"`--format folder` if it is one, else `--source {word(folders[0])}` for what is in "
            "it, or another `--format`."
        )
    if plain := [one for one in folders if one.name.lower() in NO_CLASSES]:
        raise DataError(
            f"`{path}` has folders, and one is called `{plain[0].name}`: it is not guessed whether "
            "they are classes. Type `--format folder` if they are, else "
            f"`--source {word(plain[0])}` for what is in it, or another `--format`."
        )
    return "folder", f"it holds folders, such as `{folders[0].name}`, and no table and no tar"


def _but_images(folder: Path) -> list[Path]:
    """The contents of a folder except for images and files with an image's name."""
    names = [(*stem_and_ending(name), name) for name in visible(folder)]
    stems = {stem for stem, suffix, _ in names if suffix in MEDIA_SUFFIXES}
    return [
        folder / name
        for stem, suffix, name in names
        if suffix not in MEDIA_SUFFIXES and not (suffix in sidecar.WORDS and stem in stems)
    ]


NO_CLASSES = ("image", "images", "img", "imgs", "jpg", "jpgs", "jpegs", "jpegimages", "png", "pngs")
# Endings of what may hold captions or labels.
TOLD = (".txt", ".json", ".csv", ".tsv", ".jsonl", ".parquet", ".xml")
ABOUT = ("readme", "license", "licence", "citation", "changelog")


def _refuse_two_readings(path: Path) -> None:
    """Raise where folders of images stand beside files that may say more of them than a class."""
    below = sorted(one for one in path.iterdir() if one.is_dir() and not hidden(one.name))
    for place in (path, *below):
        told = _told(place)
        if told is None and place != path:
            told = _told_without_images(place)
        if told is None:
            continue
        pictures = [one for one in below if next(image_files(one), None)]
        kind = _kind(told)
        source = told if place == path else path if place in pictures else place
        if kind == "huggingface":
            source = path
        images = f" --images {word(pictures[0])}" if source == told and len(pictures) == 1 else ""
        names = ", ".join(one.name for one in below[:3]) + ", ..." * (len(below) > 3)
        raise DataError(
            f"`{path}` has folders ({names}) and `{told.relative_to(path)}`, which may hold "
            "captions or labels: it is not guessed whether the folders are classes. Type "
            "`--format folder` if they are, else "
            + (
                f"`--source {word(source)} --format {kind}{images}`."
                if kind
                else "another `--format`."
            )
        )


def _told_without_images(folder: Path) -> Path | None:
    """A file that may tell captions or labels, in a folder of `folder` without an image before
    it."""
    for here, below, _ in os.walk(folder):
        below[:] = sorted(name for name in below if not hidden(name))
        if next(image_files(Path(here)), None):
            return None
        if told := _told(Path(here)):
            return told
    return None


def _told(folder: Path) -> Path | None:
    """The first file in `folder` that may tell captions or labels."""
    names = (name for name in visible(folder) if name.lower().endswith(TOLD))
    paths = (folder / name for name in names if not name.lower().startswith(ABOUT))
    return next((path for path in paths if path.is_file()), None)


def _kind(path: Path) -> str | None:
    """What a file beside folders of images looks like."""
    if _is_coco(path.name.lower()):
        return "coco"
    if sidecar.of_images(path.parent):
        return "sidecar"
    if path.suffix.lower() == ".parquet" and huggingface.wrote(path):
        return "huggingface"  # which knows the names of its classes
    if path.suffix.lower() == ".txt" and not table.is_table(path):
        return None
    try:
        found = _of_file(path)
    except DataError:  # JSON of another shape
        return None
    return found[0] if found else None


def _of_file(path: Path) -> tuple[str, str] | None:
    if not path.is_file():
        return None
    name = path.name.lower()
    kinds = {"webdataset": webdataset.SUFFIXES, "flickr_token": _TOKEN}
    for kind, endings in kinds.items():
        if found := next(filter(name.endswith, endings), None):
            return kind, f"its name ends in `{found}`"
    if name.endswith(".json"):
        return _of_json(path)
    return (
        ("table", f"its name ends in `{path.suffix}`")
        if path.suffix.lower() in table.READERS
        else None
    )


def _of_json(path: Path) -> tuple[str, str] | None:
    """By its first telling entry, so that the file's name does not matter."""
    if names_images(path):
        return "table", "its keys are names of images"
    for key, value in entries(path):
        table.refuse_columns(path, value)
        if key in {"train", "val", "test"}:
            return "zhou", f"it lists images at `{key}`"
        if key == "" and isinstance(value, dict):
            return "table", "it is a list of objects"
        if key == "annotations":
            return "coco", "it has `annotations`"
        if key == "images" and isinstance(value, dict):
            if "sentences" in value:
                return "karpathy", "its `images` have `sentences`"
            return "coco", "its `images` have no `sentences`"
    return None
