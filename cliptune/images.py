"""Images as Python has them, for what reads paths.

Flows in: paths, pictures of Pillow's, or an array of finished embeddings. Flows out: paths, and
what each is called in an answer: its path, or the number of what came without one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cliptune.values import PathLike
from pipelines.use.files import Faults, find, shown
from trainables.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    Array: TypeAlias = npt.NDArray[np.floating[Any]]
    Images: TypeAlias = PathLike | Image | Array | Sequence[PathLike] | Sequence[Image]

OnError: TypeAlias = Literal["raise", "skip"]
WRITTEN = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # a PNG holds these modes as they are


class Strict(Faults):
    """The first file that cannot be used ends the call."""

    def add(self, path: Path, reason: str) -> None:
        raise DataError(f"`{shown(path)}`: {reason}.")


def faults_for(on_error: OnError) -> Faults:
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"`on_error` must be 'raise' or 'skip', got {on_error!r}.")
    return Strict() if on_error == "raise" else Faults()


@contextmanager
def as_paths(images: Images) -> Iterator[tuple[list[Path], Callable[[object], str | int]]]:
    """The paths of `images`, and a function from a path in an answer to its name. What came without
    a path lies in a folder that is gone after the block."""
    import numpy as np
    from PIL.Image import Image

    alone = isinstance(images, str | os.PathLike | Image | np.ndarray)
    given: list[Any] = [images] if alone else list(images)  # type: ignore[arg-type]
    paths = [Path(one) for one in given if isinstance(one, str | os.PathLike)]
    if given and len(paths) == len(given):
        yield paths, str
        return
    with tempfile.TemporaryDirectory(prefix="cliptune-") as name:
        if isinstance(images, np.ndarray):
            paths = [_embeddings(images, Path(name))]
        elif given and all(isinstance(one, Image) for one in given):
            paths = [_png(one, Path(name) / f"{row}.png") for row, one in enumerate(given)]
        else:
            kinds = ", ".join(sorted({type(one).__name__ for one in given})) or "none"
            raise ConfigError(
                "`images` must be paths, pictures of Pillow's, or an array (N, e) of finished "
                f"embeddings, got {kinds}."
            )
        yield paths, lambda path: _number(str(path))


def files(paths: Sequence[Path], faults: Faults) -> list[Path]:
    """`paths`, each as often as it was given; for a folder the images in it."""
    return [one for path in paths for one in (find([path], faults) if path.is_dir() else [path])]


def _number(path: str) -> int:
    """Of `3.png`, or of row 3 of the array, `embeddings.npy:3`."""
    row = path.rpartition(":")[2]
    return int(row if row.isdecimal() else Path(path).stem)


def _embeddings(array: Array, folder: Path) -> Path:
    import numpy as np

    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(
            "`images` as an array must be finished embeddings, (N, e) of floating point, got "
            f"{array.shape} of {array.dtype}; a picture's pixels go in as `PIL.Image.fromarray`."
        )
    path = folder / "embeddings.npy"
    np.save(path, array, allow_pickle=False)
    return path


def _png(image: Image, path: Path) -> Path:
    """The picture upright and without loss, as the decoder reads it from any file."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode not in WRITTEN:
        image = image.convert("RGB")
    image.save(path, compress_level=1)
    return path
