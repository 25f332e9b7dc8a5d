"""CUB-200-2011's own split, image by image.

Flows in: the folder of the images. Flows out: image path (from that folder) to split, from two
files beside it: `images.txt` (a number and a path in a line) and `train_test_split.txt` (a number,
and 1 for an image to train on). There is no val in them. The classes of `image_class_labels.txt`
and `classes.txt` are those of the folders.
"""

from __future__ import annotations

from pathlib import Path

from trainables.errors import DataError

SPLIT, NAMES = "train_test_split.txt", "images.txt"
_OF = {"1": "train", "0": "test"}


def told(images: Path) -> bool:
    """Whether the images have such a split beside them."""
    return all((images.parent / name).is_file() for name in (SPLIT, NAMES))


def splits(images: Path) -> dict[str, str]:
    """Image to split; an image that only one of the two files has is an error."""
    names, trained = (_pairs(images.parent / name) for name in (NAMES, SPLIT))
    found = {}
    for number, (line, kind) in trained.items():
        where = f"`{images.parent / SPLIT}`, line {line}:"
        if kind not in _OF:
            raise DataError(f"{where} whether to train on an image must be 1 or 0, got {kind!r}.")
        if number not in names:
            raise DataError(f"{where} image {number} must be in `{NAMES}`, and is not.")
        found[names[number][1]] = _OF[kind]
    return found


def _pairs(path: Path) -> dict[str, tuple[int, str]]:
    """By the number of an image: the line, and its second word."""
    found: dict[str, tuple[int, str]] = {}
    text = path.read_text("utf-8", "surrogateescape")
    for line, words in enumerate(text.splitlines(), 1):
        number, _, said = words.strip().partition(" ")
        if not number:
            continue
        if not said:
            raise DataError(f"`{path}`, line {line}: must be a number and a word, got {words!r}.")
        if number in found:
            raise DataError(f"`{path}`, line {line}: image {number} is in line {found[number][0]}.")
        found[number] = (line, said.strip())
    return found
