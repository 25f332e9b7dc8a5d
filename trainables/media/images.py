"""Image bytes in, uint8 RGB out: the one decoder of the whole project.

Ordinary JPEGs go through simplejpeg (libjpeg-turbo), which is faster than PIL and refuses corrupted
data that PIL decodes in silence; everything else goes through PIL. Each file gets one defined
result: first frame, EXIF orientation applied, transparency over white, 16 bits scaled to 8. Sizes
are read from the header, so a decompression bomb is refused before a pixel of it exists. Of a clip,
whatever its kind, `decode` gives the first frame too; `clips.py` gives the others.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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

from trainables.media import frame_folders, video
from trainables.media.image_headers import (
    MAX_BYTES,
    MAX_PIXELS,
    BadImage,
    check_bytes,
    check_size,
    jpeg_header,
    orientation,
    webp_size,
)

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "BadImage",
    "Probe",
    "animation",
    "decode",
    "decode_still",
    "probe",
]

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
_BAND = 1_000_000  # pixels


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


class _Budget:
    """The number of pixels that all threads together may be decoding at once.

    Sixty-four threads decode small images side by side, and large ones one after the other.
    """

    def __init__(self, pixels: int) -> None:
        self.free = self.total = pixels
        self.changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.free += pixels
                self.changed.notify_all()


_budget = _Budget(MAX_PIXELS)


def probe(data: bytes) -> Probe:
    """Read the header only; `BadImage` where it already shows that `decode` would refuse."""
    return _open(data)[0]


def decode(data: bytes) -> Tensor:
    """The image as uint8 RGB (3, H, W), a channels-last view; `BadImage(reason)` otherwise."""
    if video.is_video(data):
        return next(video.frames(data)).pixels()
    if frame_folders.is_archive(data):
        data = next(frame_folders.files(data))[1]
    return decode_still(data)


def decode_still(data: bytes) -> Tensor:
    """`decode` for image files alone: a ZIP inside a ZIP is refused."""
    header, image = _open(data)
    with _budget.hold(header.width * header.height):
        if image is None:
            pixels = _decode_jpeg(data)
        else:
            pixels = _guard(header.format, lambda: _to_rgb(image))
    return _upright(torch.from_numpy(pixels).permute(2, 0, 1), header.orientation)  # (3, H, W)


def animation(data: bytes) -> Iterator[tuple[float, Tensor]]:
    """The frames of a GIF, WebP or PNG one after the other: seconds shown and uint8 (3, H, W)."""
    header, image = _open(data)
    for number in range(header.frames):
        _guard(header.format, partial(image.seek, number))
        check_size(*image.size)  # a GIF's later frames may be larger than its header says
        with _budget.hold(image.width * image.height):
            pixels = _guard(header.format, lambda: _to_rgb(image))
        # Nobody means frames of no time: browsers show them for a tenth of a second.
        seconds = float(image.info.get("duration", 0)) / 1000 or 0.1
        yield seconds, _upright(torch.from_numpy(pixels).permute(2, 0, 1), header.orientation)


def _open(data: bytes) -> tuple[Probe, Any]:
    """The header, and the opened PIL image, or None for a JPEG that simplejpeg decodes."""
    check_bytes(len(data))
    name, opener = next((o for magic, o in _OPENERS.items() if data.startswith(magic)), ("", None))
    if opener is None:
        begin = data.lstrip()[:14].decode("ascii", "replace")
        raise BadImage(f"not an image (begins with {begin!r})")
    image, frames = None, 1
    if name == "JPEG":
        width, height, channels, exif = jpeg_header(data)
        check_size(width, height)
        if channels == 4:  # CMYK or YCCK
            image = _guard(name, lambda: opener(io.BytesIO(data)))
    else:
        if name == "WEBP":  # its plugin allocates the canvas on opening
            check_size(*webp_size(data))
        image = _guard(name, lambda: opener(io.BytesIO(data)))
        width, height = image.size
        check_size(width, height)
        frames = _guard(name, lambda: getattr(image, "n_frames", 1))
        exif = image.info.get("exif", b"")
    turn = orientation(exif)
    if turn >= 5:
        width, height = height, width
    return Probe(name, width, height, frames, turn), image


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


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo the EXIF orientation of (3, H, W)."""
    if orientation >= 5:  # 5 to 8 lie on their side
        pixels = pixels.transpose(1, 2)
    flips = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def _to_rgb(image: Any) -> np.ndarray[Any, Any]:
    """A PIL image of any mode as RGB (H, W, 3), in bands: the steps between take no memory."""
    if image.mode == "F":
        raise BadImage("floating-point samples have no defined white")
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = 1 + _BAND // width
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = _band_to_rgb(band)
    return pixels


def _band_to_rgb(image: Any) -> Any:
    if image.mode.startswith("I"):
        return _scale_16_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))  # alpha 0 is white, whatever colour it hides
    return white


def _scale_16_bit(image: Any) -> np.ndarray[Any, Any]:
    """Grey of 0 to 65,535 to 0 to 255, rounded; `convert("RGB")` would clip it to white."""
    deep = np.array(image, dtype=np.int64)  # (H, W)
    if deep.min() < 0 or deep.max() > 65_535:
        raise BadImage("integer samples outside 0 to 65535 have no defined white")
    grey = ((deep + 128) // 257).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey[deep == clear] = 255
    return grey[:, :, None]  # (H, W, 1)
