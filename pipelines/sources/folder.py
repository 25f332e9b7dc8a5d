"""A folder of images by class: `<class>/*.jpg`, or `<split>/<class>/*.jpg`.

Splits may also be called `train_images` and `test_images`. The class is the folder's name, the
label its place in alphabetical order; images may lie in folders of the class's own, at any depth.
Hidden files and files that are no images by their suffix are left out and counted. Images may be
links into `--images`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.console import word
from pipelines.sources.base import (
    Options,
    RawRecord,
    ending,
    hidden,
    image_files,
    inside,
    into,
    split_name,
    split_of_name,
)
from trainables.errors import DataError


def read(source: str, options: Options) -> Iterator[RawRecord]:
    root = Path(source)
    tops, splits = _folders(root), split_folders(root)
    if splits != tops and (len(splits) > 1 or any(_holds_folders(root / one) for one in splits)):
        others = ", ".join(f"`{name}`" for name in tops if name not in splits)
        raise DataError(
            f"`{root}` has splits ({', '.join(splits)}) and beside them {others}: neither class "
            "folders nor splits alone. Move what is no split elsewhere, or rename what is a class."
        )
    groups: list[tuple[str | None, Path]] = [(None, root)]
    if splits and splits == tops:
        groups = [(split_of_name(name), root / name) for name in splits]
        for _, folder in groups:
            _refuse_one_in_another(folder)
    elif len(tops) == 1 and _holds_folders(root / tops[0]):
        inner = root / tops[0]
        raise DataError(
            f"`{root}` has one folder alone, `{tops[0]}`, and in it are folders: it is not guessed "
            f"that all is of one class. Type `--source {word(inner)}` for the folders in it."
        )
    classes = sorted({name for _, folder in groups for name in _folders(folder)})
    if not classes:
        raise DataError(f"`{root}` has no class folders: expected `<class>/*.jpg` in it.")
    for place in {root, *(folder for _, folder in groups)}:
        _, below, names = next(os.walk(place))
        _ignore(place, below, names, options)
    for split, folder in groups:
        for label, name in enumerate(classes):
            if (folder / name).is_dir():
                yield from _class(root, folder / name, label, split, options)


def split_folders(root: Path) -> list[str]:
    """The folders in `root` that are called as splits are (`train`, `Testing`), or that hold no
    image but folders and have a split's name as a word of theirs (`train_images`)."""
    return [
        name
        for name in _folders(root)
        if split_name(name) in {"train", "val", "test"}
        or (split_of_name(name) and _holds_folders(root / name))
    ]


def _holds_folders(folder: Path) -> bool:
    """Whether it holds folders and no image of its own."""
    return bool(_folders(folder)) and not any(image_files(folder))


def _refuse_one_in_another(split: Path) -> None:
    """Raise where a split's folder holds one of its own name, which would be a class."""
    if split.name in _folders(split):
        here, name = word(split), word(split.name)
        raise DataError(
            f"`{split}` holds a folder `{split.name}` where classes are expected. Take what is in "
            f"it one up: `mv {here}/{name}/* {here} && rmdir {here}/{name}`."
        )


def _folders(folder: Path) -> list[str]:
    found = (e.name for e in os.scandir(folder) if e.is_dir() and not hidden(e.name))
    return sorted(found)


def _class(
    root: Path, folder: Path, label: int, split: str | None, options: Options
) -> Iterator[RawRecord]:
    for here, below, names in os.walk(folder):
        files = list(image_files(Path(here)))
        _ignore(Path(here), below, {*names} - {path.name for path in files}, options)
        into(here, below, options)
        for path in files:
            options.tally.read[ending(path.name)] += 1
            name = str(path.relative_to(root))
            yield RawRecord(
                name,
                inside(root, name, options.images),
                label=label,
                class_name=folder.name,
                split=split,
            )


def _ignore(here: Path, below: Iterable[str], names: Iterable[str], options: Options) -> None:
    """Count the files in `here` that are no images, and all in its hidden folders."""
    options.tally.ignored.update(map(ending, names))
    for name in below:
        if hidden(name):
            files = sum(len(inner) for _, _, inner in os.walk(here / name))
            options.tally.ignored["hidden"] += files
