"""Images as Python has them, for what reads paths.

Flows in: paths, pictures of Pillow's, or an array of finished embeddings. Flows out: paths, and
what each is called in an answer: its path, or the number of what came without one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cliptune.values import PathLike, in_words, path_of
from pipelines.use.files import Faults, find, shown
from trainables.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    Array: TypeAlias = npt.NDArray[np.floating[Any]]
    Images: TypeAlias = PathLike | Image | Array | Iterable[PathLike | Image]

OnError: TypeAlias = Literal["raise", "skip"]
WRITTEN = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # a PNG holds these modes as they are


class Bad(Faults):
    """The images that cannot be used: `strict`, the first ends the call. What came without a path
    is called by its place."""

    def __init__(self, strict: bool = True) -> None:
        super().__init__()
        self.strict = strict
        self.places: dict[Path, Path] = {}

    def add(self, path: Path, reason: str) -> None:
        path = self.places.get(path, path)
        if self.strict:
            raise DataError(f"`{shown(path)}`: {reason.rstrip('.')}.")
        super().add(path, reason)


class Noted(Faults):
    """They are told later, all at once."""

    def add(self, path: Path, reason: str) -> None:
        self.reasons[path] = reason


def bad_for(on_error: OnError) -> Bad:
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"`on_error` must be 'raise' or 'skip', got {on_error!r}.")
    return Bad(on_error == "raise")


@contextmanager
def as_paths(
    images: Images, width: int, bad: Bad
) -> Iterator[tuple[list[Path], Callable[[object], str | int]]]:
    """The paths of `images`, and a function from a path in an answer to its name. What came without
    a path lies in a folder that is gone after the block; embeddings must be `width` wide."""
    import numpy as np
    from PIL.Image import Image

    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":  # a column of paths
        images = images.tolist()
    one = isinstance(images, str | bytes | os.PathLike | Image | np.ndarray)
    given: list[Any] = [images] if one or not isinstance(images, Iterable) else list(images)
    with in_words(), tempfile.TemporaryDirectory(prefix="cliptune-") as name:
        if given and all(isinstance(one, str | os.PathLike) for one in given):
            yield [path_of("images", one) for one in given], str
            return
        if isinstance(images, np.ndarray):
            paths = [_embeddings(images, width, Path(name))]
        elif given and all(isinstance(one, Image) for one in given):
            paths = _written(given, Path(name), bad)
        else:
            kinds = ", ".join(sorted({type(one).__name__ for one in given})) or "none"
            raise ConfigError(
                "`images` must be paths, pictures of Pillow's, or an array (N, e) of finished "
                f"embeddings, got {kinds}."
            )
        yield paths, lambda path: _number(str(path))


def files(paths: Sequence[Path], bad: Bad) -> list[Path]:
    """`paths`, each as often as it was given; for a folder the images in it."""
    found = []
    for path in paths:
        inside = find([path], bad)
        if not inside and path.is_dir():
            bad.add(path, "it holds no image")
        found += inside
    return found


def _number(path: str) -> int:
    """Of `3.png`, or of row 3 of the array, `embeddings.npy:3`."""
    row = path.rpartition(":")[2]
    return int(row if row.isdecimal() else Path(path).stem)


def _embeddings(array: Array, width: int, folder: Path) -> Path:
    import numpy as np

    from pipelines.sources.vectors import check_rows

    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating) or not len(array):
        raise ConfigError(
            "`images` as an array must be finished embeddings, (N, e) of floating point, got "
            f"{array.shape} of {array.dtype}; a picture's pixels go in as `PIL.Image.fromarray`."
        )
    if array.shape[1] != width:
        raise DataError(f"`images` must have vectors of width {width}, got {array.shape[1]}.")
    array = np.ma.filled(array, np.nan)  # what is masked is missing
    check_rows(Path("images"), 0, array)
    path = folder / "embeddings.npy"
    np.save(path, array, allow_pickle=False)
    return path


def _written(images: Sequence[Image], folder: Path, bad: Bad) -> list[Path]:
    """A file of each picture that is good."""
    paths = []
    for row, image in enumerate(images):
        path = folder / f"{row}.png"
        bad.places[path] = Path(f"images[{row}]")
        try:
            _write(image, path)
        except Exception as error:  # what Pillow's plugins raise on a bad file, or a closed one
            bad.add(path, str(error) or type(error).__name__)
        else:
            paths.append(path)
    return paths


def _write(image: Image, path: Path) -> None:
    """The picture upright and without loss, as the decoder reads it from any file."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in WRITTEN:
        image.save(path, compress_level=1)
    elif image.mode[0] in "IF":  # samples of other depths
        image.save(path, "TIFF")
    elif image.mode == "La":
        image.convert("LA").save(path, compress_level=1)
    else:
        mode = "RGBA" if image.has_transparency_data else "RGB"
        image.convert(mode).save(path, compress_level=1)
