"""Image bytes in, uint8 RGB out: the one decoder of the whole project.

Ordinary JPEGs go through simplejpeg (libjpeg-turbo), which is faster than PIL and refuses corrupted
data that PIL decodes in silence; everything else goes through PIL. Each file gets one defined
result: first frame, EXIF orientation applied, transparency over white, 16 bits scaled to 8. Sizes
are read from the header, so a decompression bomb is refused before a pixel of it exists.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from trainables.errors import DataError

MAX_BYTES = 64 * 2**20  # of a file
MAX_PIXELS = 64_000_000  # of an image; its RGB form then takes 192 MB at most

# PIL's plugins by their first bytes. They are called directly: `Image.open` would try every format
# it knows, and only warns about bombs below 179 megapixels.
_OPENERS: dict[bytes, tuple[str, Callable[..., Any]]] = {
    b"\xff\xd8\xff": ("JPEG", JpegImagePlugin.JpegImageFile),
    b"\x89PNG\r\n\x1a\n": ("PNG", PngImagePlugin.PngImageFile),
    b"GIF8": ("GIF", GifImagePlugin.GifImageFile),
    b"RIFF": ("WEBP", WebPImagePlugin.WebPImageFile),
    b"BM": ("BMP", BmpImagePlugin.BmpImageFile),
    b"II*\0": ("TIFF", TiffImagePlugin.TiffImageFile),
    b"MM\0*": ("TIFF", TiffImagePlugin.TiffImageFile),
}
_BIG = 8_000_000  # pixels; images above it are decoded one at a time, whatever the threads
_one_big = threading.Lock()


class BadImage(DataError):
    """Bytes that are no image, or not one that we accept; the message is the reason alone."""


@dataclass(frozen=True)
class Probe:
    """What the header says. `width` and `height` are those after the EXIF orientation."""

    format: str
    width: int
    height: int
    frames: int  # above 1: animated, or a file of several pages
    orientation: int  # EXIF's 1 to 8, 1 is upright

    @property
    def rotated(self) -> bool:
        return self.orientation != 1


def probe(data: bytes) -> Probe:
    """Read the header only; `BadImage` where it already shows that `decode` would refuse."""
    return _open(data)[0]


def decode(data: bytes) -> Tensor:
    """The image as uint8 RGB (3, H, W), a channels-last view; `BadImage(reason)` otherwise."""
    header, image = _open(data)
    with _one_big if header.width * header.height > _BIG else nullcontext():
        if image is None:
            pixels = _decode_jpeg(data)
        else:
            pixels = _guard(header.format, lambda: _to_rgb(image))
    return _upright(torch.from_numpy(pixels).permute(2, 0, 1), header.orientation)  # (3, H, W)


def _open(data: bytes) -> tuple[Probe, Any]:
    """The header, and the opened PIL image, or None for a JPEG that simplejpeg decodes."""
    if not data:
        raise BadImage("empty file")
    if len(data) > MAX_BYTES:
        raise BadImage(f"{len(data) / 2**20:.1f} MiB is above the limit of {MAX_BYTES // 2**20}")
    name, opener = next((o for magic, o in _OPENERS.items() if data.startswith(magic)), ("", None))
    if opener is None:
        begin = data.lstrip()[:14].decode("ascii", "replace")
        raise BadImage(f"not an image (begins with {begin!r})")
    image, frames = None, 1
    if name == "JPEG":
        width, height, channels, exif = _jpeg_header(data)
        _check_size(width, height)
        if channels == 4:  # CMYK or YCCK
            image = _guard(name, lambda: opener(io.BytesIO(data)))
    else:
        if name == "WEBP":  # its plugin allocates the canvas on opening
            _check_size(*_webp_size(data))
        image = _guard(name, lambda: opener(io.BytesIO(data)))
        width, height = image.size
        _check_size(width, height)
        frames = _guard(name, lambda: getattr(image, "n_frames", 1))
        exif = image.info.get("exif", b"")
    orientation = _orientation(exif)
    if orientation >= 5:
        width, height = height, width
    return Probe(name, width, height, frames, orientation), image


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"image of {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise BadImage(f"{width * height / 1e6:.1f} megapixels is above the limit of {limit}")


def _guard(name: str, action: Callable[[], Any]) -> Any:
    """Run a PIL step on untrusted bytes: whatever its plugins raise on them means a bad image."""
    try:
        return action()
    except BadImage:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, EOFError, ... by plugin
        if "truncated" in str(error).lower() or isinstance(error, EOFError):
            raise BadImage(f"truncated {name}") from error
        raise BadImage(f"corrupt {name} ({str(error) or type(error).__name__})") from error


def _decode_jpeg(data: bytes) -> np.ndarray[Any, Any]:
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        if "Premature end" in str(error) or b"\xff\xd9" not in data:  # the end marker
            raise BadImage("truncated JPEG") from error
        raise BadImage(f"corrupt JPEG ({error})") from error


def _jpeg_header(data: bytes) -> tuple[int, int, int, bytes]:
    """Width, height, channels and the raw EXIF block, by walking the markers up to the frame."""
    at, exif = 2, b""
    try:
        while True:
            while data[at + 1] == 0xFF:  # padding
                at += 1
            mark, marker = data[at], data[at + 1]
            if mark != 0xFF or marker in (0xD9, 0xDA):  # not a marker, or no frame before the scan
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


def _webp_size(data: bytes) -> tuple[int, int]:
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


def _orientation(exif: bytes) -> int:
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


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo the EXIF orientation of (3, H, W)."""
    if orientation >= 5:  # 5 to 8 lie on their side
        pixels = pixels.transpose(1, 2)
    flips = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def _to_rgb(image: Any) -> np.ndarray[Any, Any]:
    """A PIL image of any mode as RGB (H, W, 3)."""
    if image.mode.startswith("I"):
        return _scale_16_bit(image)
    if image.mode == "F":
        raise BadImage("floating-point samples have no defined white")
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))  # alpha 0 is white, whatever colour it hides
    return np.array(white)


def _scale_16_bit(image: Any) -> np.ndarray[Any, Any]:
    """Grey of 0 to 65,535 to 0 to 255, rounded; `convert("RGB")` would clip it to white."""
    deep = np.array(image, dtype=np.int64)
    if deep.min() < 0 or deep.max() > 65_535:
        raise BadImage("integer samples outside 0 to 65535 have no defined white")
    grey = ((deep + 128) // 257).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[deep == clear] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)
