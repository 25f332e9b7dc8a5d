"""Small clips of known colours in every form that is read, for the tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)
VIDEOS = {  # name: format, codec
    "mp4": ("mp4", "mpeg4"),
    "mov": ("mov", "mpeg4"),
    "webm": ("webm", "libvpx"),
    "mkv": ("matroska", "mpeg4"),
    "avi": ("avi", "mpeg4"),
}
ANIMATIONS = {"gif": "GIF", "webp": "WEBP", "png": "PNG"}


def plain(colours: Sequence[Colour], width: int = 48, height: int = 32) -> list[Image.Image]:
    return [Image.new("RGB", (width, height), colour) for colour in colours]


def video(frames: Sequence[Image.Image], kind: str = "mp4", rate: int = 10, turn: int = 0) -> bytes:
    """`turn`: degrees against the clock by which a player shall turn the frames."""
    container, codec = VIDEOS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        stream.codec_context.thread_count = 1
        if turn:
            stream.set_display_rotation(turn)
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
    return buffer.getvalue()


def silence() -> bytes:
    """An MP4 with sound alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    return buffer.getvalue()


def animation(frames: Sequence[Image.Image], kind: str = "gif", milliseconds: int = 100) -> bytes:
    buffer = io.BytesIO()
    lossless = {"lossless": True} if kind == "webp" else {}
    more = {"save_all": True, "append_images": frames[1:], "duration": milliseconds}
    frames[0].save(buffer, ANIMATIONS[kind], **more, **lossless)
    return buffer.getvalue()


def folder(path: Path, frames: Sequence[Image.Image]) -> Path:
    """Frames as `1.png`, `2.png`, ..., `10.png`: not in the order of the alphabet."""
    path.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        frame.save(path / f"{number}.png")
    return path


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def moving(still: int, moves: int, side: int = 64) -> list[Image.Image]:
    """A square that rests for `still` frames and then walks to the right for `moves`."""
    frames = []
    for step in [0] * still + list(range(1, moves + 1)):
        frame = Image.new("RGB", (side, side), (240, 240, 240))
        left = 2 + step * (side - 20) // moves
        frame.paste((20, 20, 20), (left, 24, left + 16, 40))
        frames.append(frame)
    return frames
