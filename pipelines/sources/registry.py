"""The formats by name, and which one a source looks like."""

from __future__ import annotations

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
    sidecar,
    table,
    text_folder,
    webdataset,
    zhou,
)
from pipelines.sources.base import Options, RawRecord, image_files
from pipelines.sources.json_stream import entries
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
    "huggingface": huggingface.read,
}


def source_format(source: str, given: str | None) -> str:
    """The format `given`, or what `source` looks like; a `DataError` where that is not clear."""
    if given is not None:
        if given not in SOURCES:
            raise DataError(unknown("format", given, SOURCES))
        return given
    path = Path(source)
    guess = _of_folder(path) if path.is_dir() else _of_file(path)
    if guess is None and not path.exists():
        if webdataset.tars(source):
            return "webdataset"
        if source.count("/") == 1 and not path.suffix and not source.startswith((".", "/")):
            return "huggingface"  # owner/name
        raise DataError(f"`{source}` does not exist.")
    if guess is None:
        choices = ", ".join(f"`{name}`" for name in SOURCES)
        raise DataError(f"`{source}` is of no clear format; say it with `--format`: {choices}.")
    return guess


def _of_folder(path: Path) -> str | None:
    names = [entry.name.lower() for entry in path.iterdir()]
    if {"dataset_dict.json", "state.json"} & set(names):
        return "huggingface"
    if img2dataset.is_output(path):
        return "img2dataset"
    if text_folder.is_layout(path):
        return "text_folder"
    if any(name.endswith(webdataset.SUFFIXES) for name in names):
        return "webdataset"
    if any(name.startswith("captions_") and name.endswith(".json") for name in names):
        return "coco"
    if any(name.endswith((".token", ".token.txt")) for name in names):
        return "flickr_token"
    if any(table.is_table(entry) for entry in path.iterdir()):
        return "table"
    if sidecar.of_images(path):
        return "sidecar"
    if not any(entry.is_dir() for entry in path.iterdir()):
        return None
    _refuse_two_readings(path)
    return "folder"


# Endings of what may hold captions or labels.
TOLD = (".txt", ".json", ".csv", ".tsv", ".jsonl", ".parquet", ".xml")
ABOUT = ("readme", "license", "licence", "citation", "changelog")


def _refuse_two_readings(path: Path) -> None:
    """Raise where folders of images stand beside files that may say more of them than a class."""
    below = sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
    for place in (path, *below):
        told = min(filter(_tells, place.iterdir()), default=None)
        if told is None:
            continue
        pictures = [one for one in below if next(image_files(one), None)]
        kind = _kind(told)
        source = told if place == path else path if place in pictures else place
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


def _tells(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(TOLD) and not name.startswith((".", *ABOUT)) and path.is_file()


def _kind(path: Path) -> str | None:
    """What a file beside folders of images looks like."""
    if path.name.startswith("captions_") and path.suffix == ".json":
        return "coco"
    if sidecar.of_images(path.parent):
        return "sidecar"
    try:
        return _of_file(path)
    except DataError:  # JSON of another shape
        return None


def _of_file(path: Path) -> str | None:
    if not path.is_file():
        return None
    name = path.name.lower()
    if name.endswith(webdataset.SUFFIXES):
        return "webdataset"
    if name.endswith((".token", ".token.txt")):
        return "flickr_token"
    if name.endswith(".json"):
        return _of_json(path)
    return "table" if path.suffix.lower() in table.READERS else None


def _of_json(path: Path) -> str | None:
    """By its first telling entry, so that the file's name does not matter."""
    for key, value in entries(path):
        if key in {"train", "val", "test"}:
            return "zhou"
        if key == "annotations":
            return "coco"
        if key == "images" and isinstance(value, dict):
            return "karpathy" if "sentences" in value else "coco"
    return None
