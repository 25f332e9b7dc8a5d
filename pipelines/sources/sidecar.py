"""Images with what is said of them in files of the same name beside them.

`0001.jpg` and `0001.txt` (captions, a line each), `.caption`, `.cls` or `.json`, in one folder or
in folders of it, at any depth. Folders whose names are all splits tell the split. An image without
words is a bad record; words without an image are left out and counted. Both may be links into
`--images`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipelines.sources.base import (
    MEDIA_SUFFIXES,
    BadRecord,
    Options,
    RawRecord,
    ending,
    hidden,
    image_files,
    inside,
    into,
    split_of_name,
    stem_and_ending,
    visible,
)
from pipelines.sources.samples import FIELD_OF, Sample, sample_record

_LARGEST = 2**20  # bytes of a file of words
WORDS = tuple(f".{suffix}" for suffix, field in FIELD_OF.items() if field != "image")


def read(source: str, options: Options) -> Iterator[RawRecord]:
    root = Path(source)
    splits = [
        split_of_name(one.name) for one in root.iterdir() if one.is_dir() and not hidden(one.name)
    ]
    told = bool(splits) and None not in splits
    for here, below, names in os.walk(root):
        into(here, below, options)
        place = Path(here).relative_to(root)
        split = split_of_name(place.parts[0]) if told and place.parts else None
        yield from _folder(root, Path(here), names, split, options)


def _folder(
    root: Path, here: Path, names: list[str], split: str | None, options: Options
) -> Iterator[RawRecord]:
    images = list(image_files(here))
    stems = Counter(image.stem for image in images)
    paths = [Path(name) for name in sorted(names) if not hidden(name)]
    words = {p.stem + p.suffix.lower(): p.name for p in paths if p.suffix.lower() in WORDS}
    # Words whose own name no image has are of the image whose name differs in capitals alone.
    free = {own.lower(): name for own, name in words.items() if Path(name).stem not in stems}
    unused = set(names)
    for image in images:
        key = str(image.relative_to(root))
        sample: Sample = {"image": inside(root, key, options.images)}
        used = [image.name]
        for suffix in WORDS:
            own = image.stem + suffix
            if name := words.get(own) or free.get(own.lower()):
                path = inside(root, str((here / name).relative_to(root)), options.images, "a text")
                sample[FIELD_OF[suffix[1:]]] = _content(path)
                used.append(name)
        if stems[image.stem] > 1 and len(used) > 1:
            sample["image"] = BadRecord(f"{stems[image.stem]} images have the name of `{used[1]}`")
        unused -= set(used)
        options.tally.read.update(map(ending, used))
        yield sample_record(key, sample, split, options)
    options.tally.ignored.update(map(ending, unused))


def _content(path: Path | BadRecord) -> bytes | BadRecord:
    if isinstance(path, BadRecord):
        return path
    if path.stat().st_size > _LARGEST:
        return BadRecord(f"`{path.name}` is above the limit of {_LARGEST:,} bytes")
    data = path.read_bytes()
    text = data.decode("utf-8", "replace")
    if path.suffix.lower() == ".txt" and text.strip() and not any(map(str.isalpha, text)):
        return BadRecord(f"`{path.name}` has numbers and no words")  # as boxes are kept
    return data


def of_images(folder: Path) -> Path | None:
    """The first file of words in `folder` that has an image of its name beside it."""
    names = [(*stem_and_ending(name), name) for name in visible(folder)]
    stems = {stem.lower() for stem, suffix, _ in names if suffix in MEDIA_SUFFIXES}
    words = (name for stem, suffix, name in names if suffix in WORDS and stem.lower() in stems)
    return next((folder / name for name in words), None)
