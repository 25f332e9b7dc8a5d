"""Clips as folders of frames, and as the ZIP that such a folder is in a shard.

Flows in: a folder of image files, or the bytes of a ZIP. Flows out: the ZIP, with the files as they
are, or their names and bytes in natural order: `9.jpg` before `10.jpg`.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trainables.media.image_headers import MAX_BYTES, BadClip, check_bytes

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
)
FRAME_RATE = 25.0  # frames a second, as a folder does not say it
# Those that unpack no more than is asked for; of the others a few bytes can fill the memory.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # ZIP's first day, so that equal frames are equal bytes


def is_archive(data: bytes) -> bool:
    return data[:4] == b"PK\x03\x04"


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which numbers inside names count as numbers."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", name)]


def frame_paths(folder: Path) -> list[Path]:
    """The image files directly in `folder`, in natural order."""
    found = (path for path in folder.iterdir() if _is_frame(path.name) and path.is_file())
    return sorted(found, key=lambda path: natural(path.name))


def pack(folder: Path) -> bytes:
    """The ZIP of a folder's frames, stored: the same folder gives the same bytes."""
    paths = frame_paths(folder)
    if not paths:
        raise BadClip("zero-length clip (a folder without an image)")
    real = folder.resolve()
    if outside := [path for path in paths if not path.resolve().is_relative_to(real)]:
        raise BadClip(f"frame `{outside[0].name}` leaves the folder by a link")
    check_bytes(sum(path.stat().st_size for path in paths))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            archive.writestr(zipfile.ZipInfo(path.name, _LONG_AGO), path.read_bytes())
    return buffer.getvalue()


def files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the frames in a ZIP, each read when it is asked for."""
    check_bytes(len(data))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            frames = [entry for entry in archive.infolist() if _is_frame(entry.filename)]
            if not frames:
                raise BadClip("zero-length clip (a ZIP without an image)")
            if any(entry.compress_type not in _METHODS for entry in frames):
                raise BadClip("a ZIP that is not read here (packed otherwise than by deflate)")
            unpacked = sum(entry.file_size for entry in frames)
            if unpacked > MAX_BYTES:
                raise BadClip(
                    f"a ZIP of {unpacked / 2**20:.1f} MiB when unpacked is above the limit of "
                    f"{MAX_BYTES // 2**20}"
                )
            for entry in sorted(frames, key=lambda entry: natural(entry.filename)):
                with archive.open(entry) as file:  # never read beyond the size that it declares
                    data = file.read(entry.file_size)
                yield entry.filename, data
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError) as error:
        # `ValueError`: a directory that lies before the file begins
        raise BadClip(f"corrupt ZIP ({error})") from error
    except (NotImplementedError, RuntimeError) as error:  # rare features, or a password
        raise BadClip(f"a ZIP that is not read here ({error})") from error


def _is_frame(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES
