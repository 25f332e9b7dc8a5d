"""Finished embeddings that a user names, in the place of images or of words.

Flows in: a file of vectors, a folder of such, or a store that was made of one. Flows out: its rows
by name, a chunk at a time: called as the metadata says, or `file:row`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.encode.layout import loose, read_layout
from pipelines.encode.scan import record, records
from pipelines.sources.vectors import PICKLES, SUFFIXES, Vectors, open_vectors
from trainables.data.shards import chunks
from trainables.errors import DataError
from trainables.files import read_json

FEW = 10_000  # rows that need no progress bar
Rows = tuple[list[Path], Tensor]  # n names, and the vectors (n, e)


def is_given(path: Path) -> bool:
    """Whether finished embeddings are at `path`."""
    if (path / "manifest.json").is_file():
        return _origin(path) is not None
    if path.is_dir():
        return (path / "img_emb").is_dir() or bool(loose(path))
    return path.suffix in (*SUFFIXES, *PICKLES)


def rows_of(path: Path, width: int | None, doing: str, size: int) -> Iterator[Rows]:
    """The image vectors at `path`, about `size` at a time, all of `width` if there is one. Raises
    `DataError` before the first, where any is not as it must be."""
    folder = _origin(path) or path
    if folder.is_dir():
        given = read_layout(folder)
        vectors, said = given.images, records(given)
    else:
        vectors, said = _of_file(folder, "image"), None
    _check(vectors, width)
    row = 0
    with tqdm(total=vectors.rows, desc=doing, unit="row", disable=vectors.rows <= FEW) as bar:
        for some in vectors.chunks():
            numbers = range(row, row + len(some))
            if said is None:
                names = [f"{path}:{number}" for number in numbers]
            else:
                pairs = zip(next(said), numbers, strict=True)
                names = [record(about, number, {})["id"] for about, number in pairs]
            for part in chunks(range(len(some)), size):
                place = slice(part[0], part[-1] + 1)
                yield [Path(name) for name in names[place]], torch.from_numpy(some[place]).float()
                bar.update(len(part))
            row += len(some)


def queries_of(path: Path, width: int | None) -> tuple[list[str], Tensor]:
    """The text vectors in a file, each a query, and what they are called: (Q, e)."""
    vectors = _of_file(path, "text")
    _check(vectors, width)
    embeds = torch.cat([torch.from_numpy(some).float() for some in vectors.chunks()])
    return [f"{path}:{row}" for row in range(len(embeds))], embeds


def _of_file(path: Path, side: str) -> Vectors:
    if not path.is_file():
        raise DataError(f"`{path}` is no file of embeddings.")
    vectors = open_vectors([path], side)
    if vectors is None and side == "text":  # one matrix, called anything
        vectors = open_vectors([path], "image")
    if vectors is None:
        raise DataError(f"`{path}` has no {side} vectors.")
    return vectors


def _check(vectors: Vectors, width: int | None) -> None:
    if width is not None and vectors.width != width:
        raise DataError(
            f"`{vectors.parts[0].path}` must have vectors of width {width}, got {vectors.width}."
        )
    vectors.check()


def _origin(path: Path) -> Path | None:
    """The folder of embeddings that the store at `path` was made of."""
    manifest = path / "manifest.json"
    about = read_json(manifest) if manifest.is_file() else None
    origin = about.get("embeddings") if isinstance(about, dict) else None
    return Path(origin) if isinstance(origin, str) else None
