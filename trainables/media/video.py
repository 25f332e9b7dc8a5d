"""Video files: bytes of an MP4, MOV, WebM, Matroska or AVI in, one frame after the other out.

FFmpeg decodes them, through PyAV, in one thread and from memory. The first bytes decide which of
its demuxers reads them: left to choose, FFmpeg knows formats that name other files to open.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from trainables.media.image_headers import MAX_PIXELS, BadClip, BadImage, check_bytes, check_size

Array: TypeAlias = np.ndarray[Any, Any]
SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"})
GREY = 32  # pixels a side of the small frames by which motion is measured
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # what an MP4 or MOV begins with
_STILLS = (b"heic", b"heix", b"mif1", b"avif")  # brands of photos in the same container
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


@dataclass(frozen=True)
class Frame:
    """A frame, decoded as far as it is asked for. It is valid until the next one is drawn."""

    time: float  # seconds, from wherever the file begins to count
    seconds: float  # for which it is shown; 0: until the next one
    pixels: Callable[[], Tensor]  # uint8 (3, H, W), upright
    grey: Callable[[], Array]  # uint8 (GREY, GREY)


def is_video(data: bytes) -> bool:
    return _demuxer(data) is not None


def frames(data: bytes) -> Iterator[Frame]:
    """All frames in the order of time; `BadClip` where the bytes are damaged, or too large."""
    import av  # here: who has no videos loads no FFmpeg

    check_bytes(len(data))
    if _is_cut(data):
        raise BadClip("truncated video")
    count, time = 0, 0.0
    try:
        with av.open(io.BytesIO(data), format=_demuxer(data), metadata_errors="ignore") as file:
            stream = _stream(file)
            for count, frame in enumerate(file.decode(stream), 1):
                if frame.is_corrupt:
                    raise BadClip(f"corrupt video (frame {count} is damaged)")
                check_size(frame.width, frame.height)
                if frame.time is not None:
                    time = float(frame.time)
                seconds = float((frame.duration or 0) * (frame.time_base or 0))
                yield Frame(time, seconds, partial(_pixels, frame), partial(_grey, frame))
                time += seconds  # of the next frame, should the file not say
    except BadImage:
        raise
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadClip(f"corrupt video ({reason})") from error
    if not count:
        raise BadClip("zero-length video (no frame)")


def _stream(file: Any) -> Any:
    """The first stream of moving pictures; the cover picture of a song is not one."""
    import av

    covers = av.stream.Disposition.attached_pic
    streams = [s for s in file.streams.video if not s.disposition & covers]
    if not streams:
        raise BadClip("no video stream")
    context = streams[0].codec_context
    if context is None:
        raise BadClip("a video codec that FFmpeg does not decode")
    if context.width or context.height:  # else no frame was found, or the first will tell
        check_size(context.width, context.height)
    context.thread_count = 1  # who reads many clips has a thread or a process for each
    context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may grow on its way
    return streams[0]


def _pixels(frame: Any) -> Tensor:
    picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)  # (3, H, W)
    return torch.rot90(picture, round(frame.rotation / 90), (1, 2))  # both count against the clock


def _grey(frame: Any) -> Array:
    small = frame.reformat(width=GREY, height=GREY, format="gray", interpolation="AREA")
    return np.asarray(small.to_ndarray())


def _demuxer(data: bytes) -> str | None:
    """FFmpeg's name of the format."""
    if data[4:8] in _BOXES and not (data[4:8] == b"ftyp" and data[8:12] in _STILLS):
        return "mov"
    if data[:4] == _EBML:
        return "matroska"
    return "avi" if data[:4] == b"RIFF" and data[8:12] == b"AVI " else None


def _is_cut(data: bytes) -> bool:
    """Whether the container says that more should follow. FFmpeg would play a cut file without a
    word."""
    if data[:4] == b"RIFF":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    if data[:4] == _EBML:
        return _segment_end(data) > len(data)
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        if size == 1:  # a long one
            size = int.from_bytes(data[at + 8 : at + 16])
        elif size == 0:  # to the end
            return False
        if size < 8:
            raise BadClip(f"corrupt video (a box of {size} bytes)")
        at += size
    return at > len(data)


def _segment_end(data: bytes) -> int:
    """Where the Matroska segment ends; 0 where it does not say, as when it was streamed."""
    size, _, at = _number(data, 4)
    at += size
    if data[at : at + 4] != _SEGMENT:
        return 0
    size, unknown, at = _number(data, at + 4)
    return 0 if unknown else at + size


def _number(data: bytes, at: int) -> tuple[int, bool, int]:
    """EBML's number at `at`, whether it stands for "unknown", and where it ends."""
    length = 9 - (data[at] if at < len(data) else 0).bit_length()  # a 1 after so many zeros
    most = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length]) & most
    return value, value == most, at + length
