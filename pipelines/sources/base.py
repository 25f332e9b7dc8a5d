"""The records that every source yields, and the rules for paths that come out of a file.

Flows in: a source's files, column names and paths. Flows out: `RawRecord`s, splits, safe paths.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from trainables.errors import DataError, unknown
from trainables.media.frame_folders import IMAGE_SUFFIXES
from trainables.media.video import SUFFIXES as VIDEO_SUFFIXES

# What may stand where an image is meant: also a clip, a ZIP of its frames, or a folder of them.
MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".zip"}
FIELDS = ("id", "image", "caption", "label", "class_name", "split")

_SPLITS = {
    "train": "train", "training": "train", "restval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, and why, in words for the quarantine."""

    reason: str


@dataclass(frozen=True)
class RawRecord:
    """An image or clip as its source tells it: no value is checked, and a `Path` is not read
    yet."""

    id: str
    image: bytes | Path | BadRecord  # a path may be a folder of a clip's frames
    captions: tuple[str | bytes, ...] = ()  # bytes: the source did not decode them
    label: int | None = None
    class_name: str | None = None
    split: str | None = None  # None: the source has no splits
    # Rows of one group tell one picture bit by bit: what they say twice is said twice of it. Other
    # groups, and records without one, say it of the same picture anew.
    group: str | None = None
    rows: tuple[RawRecord, ...] = ()  # what it unites

    def apart(self) -> list[RawRecord]:
        """The single records that this one unites."""
        return list(self.rows) or [self]


@dataclass(frozen=True)
class Tally:
    """How many records a source found and how each ended, for the account of everything that was
    read."""

    read: Counter[str] = field(default_factory=Counter)  # files, members, lines, by ending or kind
    ignored: Counter[str] = field(default_factory=Counter)  # the same, which are in no record
    left_out: Counter[str] = field(default_factory=Counter)  # records, by reason


@dataclass(frozen=True)
class Options:
    """How to read a source. `notes`, counts worth telling, and `tally` are filled by it."""

    images: Path | None = None  # the folder of the images, where not beside the source
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)  # field: columns of a table
    multi_label: Literal["largest", "drop"] = "largest"  # of an image with several classes' objects
    notes: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)

    def silent(self) -> Options:
        """The same options for reading the source once more, without counting anything."""
        return replace(self, notes=Counter(), tally=Tally())


def split_name(name: str) -> str:
    """The project's word for a source's split; an unknown one is returned as it is."""
    return _SPLITS.get(name.strip().lower(), name)


def split_of_name(name: str) -> str | None:
    """The split that a file name tells, such as `captions_val2014.json` or `train-00001.tar`.

    >>> split_of_name("captions_val2014.json"), split_of_name("photos.json")
    ('val', None)
    """
    words = (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def splits_of_files(names: Sequence[str]) -> list[str | None]:
    """The splits that the several files of one source tell, which all do or none."""
    told = {name: split_of_name(name) for name in names} if len(names) > 1 else {}
    if any(told.values()) and not all(told.values()):
        has = next(name for name, split in told.items() if split)
        without = [name for name, split in told.items() if not split]
        raise DataError(
            f"the name of `{without[0]}` tells no split, and that of `{has}` does ({told[has]}). "
            "Rename it, as `train-...`, or move what is no part of the data elsewhere."
        )
    return [told.get(name) for name in names]


def parse_columns(pairs: Sequence[str]) -> dict[str, list[str]]:
    """`["image=path", "caption=title"]` as a mapping; a field given twice has two columns.

    >>> parse_columns(["image=path", "caption=title"])
    {'image': ['path'], 'caption': ['title']}
    """
    columns: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or not column:
            raise DataError(f"`--columns` takes pairs like caption=title, got {pair!r}.")
        if name not in FIELDS:
            raise DataError(unknown("field", name, FIELDS))
        columns.setdefault(name, []).append(column)
    return columns


def inside(
    root: Path, name: str, store: Path | None = None, what: str = "image path"
) -> Path | BadRecord:
    """`root / name`. Raises where that leaves `root`: by an absolute path, by `..`, or by a link
    that does not lead into `store`. `what` names it in the reason."""
    parts = Path(name).parts
    if not name or "\0" in name:
        return BadRecord(f"image path {name!r} is not a path")
    path = root / name  # an absolute name stays as it is
    if ".." in parts:
        return BadRecord("image path leaves the folder")
    if not path.absolute().is_relative_to(root.absolute()):
        return BadRecord("image path leaves the folder: say with --images where images may lie")
    here, real = os.path.realpath(root), os.path.realpath(path)
    if store and Path(real).is_relative_to(os.path.realpath(store)):
        return path
    if os.path.commonpath([here, real]) != here:
        return BadRecord(f"{what} leaves the folder by a link: say with --images where to")
    if here == real:  # else all of its pictures would be the frames of a clip
        return BadRecord("image path is the folder of the images itself")
    return path


class ImageRoot:
    """The folder in which a source's images are found by name: `given`, or the first of `folders`
    that has one of them. Until one is found, and where none of the first thousand is in any, it is
    the first folder. Among several others, the one whose name tells `split` is taken."""

    def __init__(
        self, given: Path | None, folders: Sequence[Path], split: str | None = None
    ) -> None:
        self._found, self._folders, self._split, self._left = given, folders, split, 1_000
        self.by_split = False  # whether the folder's name tells the split

    def of(self, name: str) -> Path:
        """The folder for the image `name`."""
        if self._found is None and name and self._left:
            self._left -= 1
            may = (root for root in self._folders if not isinstance(inside(root, name), BadRecord))
            self._found = self._choice(name, [root for root in may if (root / name).exists()])
        return self._found or self._folders[0]

    def _choice(self, name: str, found: Sequence[Path]) -> Path | None:
        if not found or found[0] == self._folders[0]:
            return next(iter(found), None)
        told = [root for root in found if self._split == (split_of_name(root.name) or "")]
        if len(found) > 1 and len(told) != 1:
            folders = " and in ".join(f"`{root}`" for root in found)
            raise DataError(f"image `{name}` is in {folders}: say with `--images` in which.")
        self.by_split = bool(told)
        return (told or found)[0]


def with_folders(folder: Path) -> list[Path]:
    """`folder` and those in it."""
    with os.scandir(folder) as entries:
        below = sorted(one.name for one in entries if one.is_dir() and not hidden(one.name))
    return [folder, *(folder / name for name in below)]


def hidden(name: str) -> bool:
    """Whether a file or folder is not data: a dot file, or a Mac's copy in a ZIP."""
    return name.startswith(".") or name == "__MACOSX"


def ending(name: str) -> str:
    """The ending under which a file is counted."""
    return "hidden" if hidden(name) else Path(name).suffix.lower() or "no ending"


def visible(folder: Path) -> list[str]:
    """The names in `folder` that may be data, in order; names alone, as there may be millions."""
    return sorted(name for name in os.listdir(folder) if not hidden(name))  # noqa: PTH208


def walk(root: Path) -> Iterator[Path]:
    """All files below `root`, in an order that does not depend on the disk."""
    for here, below, names in os.walk(root):
        below.sort()
        yield from (Path(here, name) for name in sorted(names))


def files_below(root: Path) -> Iterator[Path]:
    """The files below `root` that may be data: none in a hidden folder, where a notebook keeps
    copies."""
    for here, below, names in os.walk(root):
        below[:] = [name for name in below if not hidden(name)]
        yield from (Path(here, name) for name in names if not hidden(name))


def into(here: str, below: list[str], options: Options) -> None:
    """Of the folders in `here`, which `os.walk` is about to enter, those that may hold data, in
    order. Links are not followed, as they may be circles, but counted."""
    below[:] = sorted(name for name in below if not hidden(name))
    links = sum(Path(here, name).is_symlink() for name in below)
    options.tally.ignored.update({"link to a folder": links} if links else {})


def stem_and_ending(name: str) -> tuple[str, str]:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem, suffix.lower()


def image_files(folder: Path) -> Iterator[Path]:
    """The image and clip files directly in `folder`, by name."""
    names = visible(folder)
    return (folder / name for name in names if stem_and_ending(name)[1] in MEDIA_SUFFIXES)
