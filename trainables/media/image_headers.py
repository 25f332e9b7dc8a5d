"""What image files say of themselves, read by hand from their first bytes.

Flows in: bytes. Flows out: size, channels, orientation; or `BadImage`. By hand where PIL would
already decode, allocate or warn to tell the size.
"""

from __future__ import annotations

import stat
import struct
from pathlib import Path

from trainables.errors import DataError

MAX_BYTES = 64 * 2**20  # of a file
MAX_PIXELS = 64_000_000  # of an image; its RGB form then takes 192 MB at most


class BadImage(DataError):
    """Bytes that are no image, or not one that we accept; the message is the reason alone."""


class BadClip(BadImage):
    """Bytes that are no clip, or not one that we accept; the message is the reason alone."""


def check_bytes(size: int) -> None:
    """Refuse an empty file, or one above `MAX_BYTES`."""
    if not size:
        raise BadImage("empty file")
    if size > MAX_BYTES:
        raise BadImage(f"{size / 2**20:.1f} MiB is above the limit of {MAX_BYTES // 2**20}")


def read_file(path: Path) -> bytes:
    """The bytes of a file that may be an image or a clip; else `BadImage` says what is wrong."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would block for ever
            raise BadImage("not a regular file")
        check_bytes(found.st_size)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadImage("missing file") from error
    except OSError as error:
        raise BadImage(f"unreadable file ({error.strerror})") from error


def check_size(width: int, height: int) -> None:
    """Refuse an image or a frame without pixels, or with more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise BadImage(f"image of {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise BadImage(f"{width * height / 1e6:.1f} megapixels is above the limit of {limit}")


def jpeg_header(data: bytes) -> tuple[int, int, int, bytes]:
    """Width, height, channels and the raw EXIF block, by walking the markers up to the frame."""
    at, exif = 2, b""
    try:
        while True:
            while data[at + 1] == 0xFF:  # padding
                at += 1
            mark, marker = data[at], data[at + 1]
            # No marker, or one without a length, which nobody writes here and a forger could use
            # to show us another frame than the decoder sees; or the scan, before any frame.
            if mark != 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xDA:
                raise BadImage("corrupt JPEG (no frame header)")
            (size,) = struct.unpack_from(">H", data, at + 2)
            if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):  # SOF
                height, width, channels = struct.unpack_from(">HHB", data, at + 5)
                return width, height, channels, exif
            if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                exif = exif or data[at + 4 : at + 2 + size]
            at += 2 + size
    except (IndexError, struct.error) as error:
        raise BadImage("truncated JPEG") from error


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a RIFF container's WebP, from its first chunk."""
    head = data[:30].ljust(30, b"\0")
    if head[8:15] == b"WEBPVP8":
        if head[15:16] == b"X":
            return (
                1 + int.from_bytes(head[24:27], "little"),
                1 + int.from_bytes(head[27:30], "little"),
            )
        if head[15:16] == b"L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if head[15:16] == b" ":
            return (
                int.from_bytes(head[26:28], "little") & 0x3FFF,
                int.from_bytes(head[28:30], "little") & 0x3FFF,
            )
    raise BadImage("not an image (a RIFF file without WebP)")


def orientation(exif: bytes) -> int:
    """EXIF tag 0x0112 of the first directory; 1 (upright) where there is none or it is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
