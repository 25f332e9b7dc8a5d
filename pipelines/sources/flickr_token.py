"""Flickr8k's and 30k's `*.token.txt` (`name.jpg#0<TAB>caption`) and their split lists.

The source is the token file, or the folder with it. The lists are the text files beside it whose
names tell a split (`Flickr_8k.trainImages.txt`, `val.txt`, ...), one image name a line; images in
none of them are left out and counted, as the official splits do. Without lists there are no splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.sources.base import (
    ImageRoot,
    Options,
    RawRecord,
    inside,
    split_of_name,
    with_folders,
)
from pipelines.sources.encodings import in_utf8
from pipelines.sources.gather import Gather
from trainables.errors import DataError


def read(source: str, options: Options) -> Iterator[RawRecord]:
    path = _token_file(Path(source))
    splits = _split_lists(path)
    captions = Gather(_captions(path, options))
    root = ImageRoot(options.images, with_folders(path.parent))
    listed = len(splits)
    for name in captions:
        split = splits.get(name) or splits.get(name.removesuffix(".jpg"))
        listed -= split is not None
        if splits and split is None:
            options.tally.left_out["in no split list"] += 1
            continue
        record = RawRecord(name, inside(root.of(name), name), captions[name], split=split)
        yield in_utf8(record, path)
    options.tally.ignored["name in a split list without captions"] += max(listed, 0)


def split_lists(source: Path) -> list[Path]:
    return files(_token_file(source))[1:]


def files(token_file: Path) -> list[Path]:
    """The token file and its split lists."""
    lists = sorted(p for p in token_file.parent.glob("*.txt") if split_of_name(p.stem))
    return [token_file, *(p for p in lists if p != token_file)]


def _token_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.name.lower().endswith((".token.txt", ".token")))
    found = [p for p in found if "lemma" not in p.name] or found
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise DataError(f"`{path}` must hold one `*.token.txt` or `*.token`, found {names}.")
    return found[0]


def _split_lists(token_file: Path) -> dict[str, str]:
    """Image name (or stem) to split; about 150 bytes an image."""
    splits: dict[str, str] = {}
    for path in files(token_file)[1:]:
        split = split_of_name(path.stem) or ""
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            name = line.strip()
            if name and splits.setdefault(name, split) != split:
                raise DataError(f"`{name}` is in two split lists: {splits[name]} and {split}.")
    return splits


def _captions(path: Path, options: Options) -> Iterator[tuple[str, bytes]]:
    if not path.is_file():
        raise DataError(f"`{path}` does not exist.")
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                options.tally.read["line"] += 1
                mark, _, text = line.rstrip(b"\r\n").partition(b"\t")
                name, hash_sign, number = mark.rpartition(b"#")
                key = name if hash_sign and number.strip().isdigit() else mark
                yield key.decode("utf-8", "surrogateescape"), text
