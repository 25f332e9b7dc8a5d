"""Files that a user names: which they are, what is in them, and what is wrong with some.

Flows in: paths of files and folders. Flows out: images as squares for the tower. A bad file is told
in one line on stderr, the others are used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from pipelines.use.given import is_given
from trainables.data.shards import chunks
from trainables.errors import DataError
from trainables.media.frame_folders import IMAGE_SUFFIXES
from trainables.media.image_headers import BadImage, read_file
from trainables.media.images import decode
from trainables.media.preprocess import Preprocess

CHUNK = 32  # images decoded at a time
FEW = 8  # files that need no progress bar


class Faults:
    """The files that could not be used, each with its reason, told as they are found."""

    def __init__(self) -> None:
        self.reasons: dict[Path, str] = {}

    def add(self, path: Path, reason: str) -> None:
        self.reasons[path] = reason
        tqdm.write(f"warning: `{shown(path)}`: {reason}", file=sys.stderr)

    def as_json(self) -> list[dict[str, str]]:
        return [{"path": shown(path), "error": text} for path, text in self.reasons.items()]

    def leave(self) -> None:
        """End the command with exit code 1 where a file was bad."""
        if self.reasons:
            sys.exit(1)


def shown(path: Path) -> str:
    """A path as text that can be printed: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def find(
    given: Iterable[Path], faults: Faults, also: frozenset[str] = frozenset(), whole: bool = False
) -> list[Path]:
    """The files `given`, each once; a folder stands for the images in it, at any depth, and for
    files whose names end in one of `also`; without any, or `whole`, for itself: embeddings may be
    there, or frames."""
    suffixes = IMAGE_SUFFIXES | also
    found: dict[Path, None] = {}
    for path in given:
        inside = list(_below(path, suffixes)) if path.is_dir() and not whole else []
        for one in inside or ([path] if whole or not path.is_dir() or is_given(path) else []):
            if shown(one).encode() != os.fsencode(one):
                faults.add(one, "its name is not UTF-8")
            else:
                found[one] = None
    return list(found)


def find_images(folder: Path, faults: Faults) -> list[Path]:
    """The images in `folder` at any depth; or itself, where it is of embeddings."""
    if not folder.is_dir() and not is_given(folder):
        raise DataError(f"`--images` must name a folder, or a file of embeddings, got `{folder}`.")
    found = find([folder], faults)
    if not found:
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(
            f"`{folder}` holds no image: no name in it ends in {endings}; nor embeddings."
        )
    return found


def _below(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """By name. What is hidden stays so; links to folders are not followed, they may be circles."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(names):
            if name[0] != "." and Path(name).suffix.lower() in suffixes:
                yield Path(here) / name


def squares(
    paths: Sequence[Path], preprocess: Preprocess, faults: Faults, doing: str
) -> Iterator[list[tuple[Path, Tensor]]]:
    """The images that are good, uint8 (3, R, R), a chunk at a time. The bar says what we are
    `doing`; its rate counts what the caller does with a chunk too."""

    def square(path: Path) -> Tensor | str:
        try:
            return preprocess.apply(decode(read_file(path)))
        except BadImage as error:
            return str(error)

    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,  # decoders release the GIL
        tqdm(total=len(paths), unit="img", desc=doing, disable=len(paths) <= FEW) as bar,
    ):
        for chunk in chunks(paths, CHUNK):
            good = []
            for path, result in zip(chunk, pool.map(square, chunk), strict=True):
                if isinstance(result, str):
                    faults.add(path, result)
                else:
                    good.append((path, result))
            yield good
            bar.update(len(chunk))
