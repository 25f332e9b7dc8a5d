"""Captions in a folder of texts beside the folder of images, as Reed et al. 2016 give CUB's and
Flowers': ten captions an image, a line each.

`text_c10/001.Black_footed_Albatross/NAME.txt` (or `text/...`, `captions/...`); the image is
`images/001.Black_footed_Albatross/NAME.jpg` (CUB) or `jpg/NAME.jpg` (Flowers), beside the folder of
texts or under `--images`. The class is the folder's name without its number, the label its place in
alphabetical order; texts that lie in no folder have none. `trainclasses.txt`, `valclasses.txt` (or
of both, `trainvalclasses.txt`) and `testclasses.txt` beside the texts tell splits by class; without
them CUB's `train_test_split.txt` beside the images tells them. Images without a text are counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipelines.sources import cub
from pipelines.sources.base import (
    BadRecord,
    Options,
    RawRecord,
    ending,
    hidden,
    image_files,
    inside,
    stem_and_ending,
    visible,
)
from pipelines.sources.samples import lines_of
from trainables.errors import DataError

_TEXTS = ("text_c10", "text", "captions")
# Lists of class folders beside the texts; the last where the first two are not there.
_CLASSES = {"trainclasses": "train", "valclasses": "val", "testclasses": "test"}
_BOTH = "trainvalclasses"
_IMAGES = ("images", "jpg", "CUB_200_2011/images")


def read(source: str, options: Options) -> Iterator[RawRecord]:
    root = Path(source)
    texts = texts_of(root)
    images = options.images or _first(texts.parent if texts else root, _IMAGES)
    if texts is None or images is None:
        wanted = _IMAGES if texts else _TEXTS
        names = ", ".join(f"`{name}`" for name in wanted)
        raise DataError(
            f"`{root}` must have a folder of {'images' if texts else 'texts'}, one of {names}; "
            "`--images` names that of the images."
        )
    classes = sorted(one.name for one in texts.iterdir() if one.is_dir() and not hidden(one.name))
    flat, found = _by_stem(images), 0
    splits = _splits(texts)
    by_image = {} if splits or not cub.told(images) else cub.splits(images)
    if splits and cub.told(images):
        options.notes[f"splits by the lists of classes, not by `{cub.SPLIT}`"] += 1
    for label, name in enumerate(classes or [""]):
        if splits and name not in splits:
            count = sum(stem_and_ending(one)[1] == ".txt" for one in visible(texts / name))
            options.tally.left_out["class in no split list"] += count
            found += count
            continue
        own = _by_stem(images / name) if (images / name).is_dir() else flat
        for text in sorted((texts / name).iterdir()):
            if text.suffix.lower() != ".txt" or hidden(text.name):
                options.tally.ignored[ending(text.name)] += 1
                continue
            options.tally.read[".txt"] += 1
            image = own.get(text.stem)
            found += image is not None
            path = inside(texts, str(text.relative_to(texts)), options.images, "a text")
            record = _record(images, path, image, label, str(Path(name, text.name)))
            split = by_image.get(record.id, splits.get(name))
            if by_image and split is None and image is not None:
                options.tally.left_out["in no split list"] += 1
                continue
            yield replace(record, split=split)
    total = sum(len(list(image_files(Path(here)))) for here, _, _ in os.walk(images))
    options.tally.ignored["image without a text"] += max(total - found, 0)


def texts_of(source: Path) -> Path | None:
    """The folder of the texts, which may be the source itself."""
    return source if source.name in _TEXTS else _first(source, _TEXTS)


def split_lists(texts: Path) -> dict[Path, str]:
    """The lists of classes beside the texts, and the split of each."""
    lists = {texts.parent / f"{name}.txt": split for name, split in _CLASSES.items()}
    if not any(path.is_file() for path, split in lists.items() if split != "test"):
        lists[texts.parent / f"{_BOTH}.txt"] = "train"
    return {path: split for path, split in lists.items() if path.is_file()}


def split_of_images(texts: Path) -> list[Path]:
    """The files that tell splits by image, where there are no lists of classes."""
    images = _first(texts.parent, _IMAGES)
    if images is None or split_lists(texts) or not cub.told(images):
        return []
    return [images.parent / name for name in (cub.NAMES, cub.SPLIT)]


def _splits(texts: Path) -> dict[str, str]:
    """Class folder to split."""
    splits: dict[str, str] = {}
    for path, split in split_lists(texts).items():
        for name in filter(None, map(str.strip, path.read_text("utf-8").splitlines())):
            if splits.setdefault(name, split) != split:
                raise DataError(f"`{path}` has `{name}`, which is of {splits[name]} already.")
    return splits


def is_layout(path: Path) -> bool:
    """Whether a folder has texts, and a folder of images beside them."""
    texts = _first(path, _TEXTS)
    if texts is None or _first(path, _IMAGES) is None:
        return False
    return (
        next(texts.glob("*.txt"), None) is not None or next(texts.glob("*/*.txt"), None) is not None
    )


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _by_stem(folder: Path) -> dict[str, Path]:
    return {image.stem: image for image in image_files(folder)}


def _record(
    images: Path, text: Path | BadRecord, image: Path | None, label: int, name: str
) -> RawRecord:
    """`name`, the text's, begins with its class."""
    if image is None:
        return RawRecord(name, BadRecord("no image of its name"))
    key, own = str(image.relative_to(images)), Path(name).parent.name
    if isinstance(text, BadRecord):
        return RawRecord(key, text)
    record = RawRecord(key, inside(images, key), tuple(lines_of(text.read_bytes())))
    if not own:
        return record
    return replace(record, label=label, class_name=re.sub(r"^\d+\.", "", own))
