"""Short clips: a video, an animation or a folder of frames in, chosen frames out.

A clip is read twice. The first time gives each frame's time and how much moved, from small grey
copies; the second time gives the frames that were chosen. Never more than those are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from trainables.errors import ConfigError
from trainables.media import frame_folders, video
from trainables.media.frame_folders import FRAME_RATE
from trainables.media.image_headers import BadClip, BadImage, read_file
from trainables.media.images import animation, decode_still, probe
from trainables.media.video import GREY, Array, Frame

__all__ = ["BadClip", "Clip", "Rule", "is_clip", "sample", "segments"]

Rule: TypeAlias = Literal["uniform", "motion"]
Span: TypeAlias = tuple[float, float]  # start and end, seconds
SUFFIXES = video.SUFFIXES | {".zip"}  # of files that are always clips
ANIMATED = ("GIF", "WEBP", "PNG")
MAX_SECONDS = 120.0
MAX_FRAMES = 14_400  # 120 a second
MAX_WORK = 16e9  # pixels of all frames together: 4K for 60 s
STILL = 1.0  # grey levels a second that time itself counts as motion


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip that was read once: when its T frames are shown, and how much each one changed."""

    data: bytes  # the original file, or a folder's ZIP
    times: Array  # (T,) seconds from the start, ascending
    duration: float  # seconds
    motion: Array  # (T,) mean absolute difference to the frame before, in grey levels
    width: int  # of the first frame, upright
    height: int

    @classmethod
    def open(cls, source: bytes | Path) -> Clip:
        """The clip in these bytes, this file or this folder of frames; else `BadClip(reason)`."""
        try:
            data = source if isinstance(source, bytes) else _read(source)
            if not is_clip(data):
                probe(data)  # says what is wrong with it, if anything is
                raise BadClip("a still image, not a clip")
            return cls._scan(data)
        except BadClip:
            raise
        except BadImage as error:
            raise BadClip(str(error)) from error

    @classmethod
    def _scan(cls, data: bytes) -> Clip:
        times: list[float] = []
        motion: list[float] = []
        height = width = work = 0
        for frame in _frames(data):
            grey = frame.grey().astype(np.int16)
            if not times:
                last, (height, width) = grey, frame.pixels().shape[1:]
            motion.append(float(np.abs(grey - last).mean()))
            times.append(max([frame.time, *times[-1:]]))
            last, work = grey, work + height * width
            _check_length(times[-1] - times[0], len(times), work)
        starts = np.array(times) - times[0]
        # A last frame without a length is shown as long as the others on average.
        shown = frame.seconds or float(starts[-1]) / max(1, len(starts) - 1) or 1 / FRAME_RATE
        return cls(data, starts, float(starts[-1]) + shown, np.array(motion), width, height)

    def frames(self, numbers: Sequence[int]) -> list[Tensor]:
        """The frames with these numbers, in the order asked for: uint8 (3, H, W) each."""
        wanted = set(numbers)
        if outside := [n for n in wanted if not 0 <= n < len(self.times)]:
            raise IndexError(f"the clip has {len(self.times)} frames, got number {outside[0]}.")
        found: dict[int, Tensor] = {}
        for number, frame in enumerate(_frames(self.data)):
            if number in wanted:
                found[number] = frame.pixels()
                if len(found) == len(wanted):
                    break
        return [found[number] for number in numbers]


def is_clip(data: bytes) -> bool:
    """Whether these bytes begin like a clip: a video, a ZIP, or an image that is animated."""
    if video.is_video(data) or frame_folders.is_archive(data):
        return True
    if data.startswith(b"\xff\xd8"):  # a JPEG, as most images are: nothing to look up
        return False
    try:
        header = probe(data)
    except BadImage:
        return False
    return header.format in ANIMATED and header.frames > 1


def sample(clip: Clip, n: int, rule: Rule, span: Span | None = None) -> list[int]:
    """The numbers of `n` frames, ascending, of the whole clip or of a `span` of it.

    `uniform`: the frames shown in the middles of n equal parts of the time. `motion`: the same, of
    n equal parts of the cumulative motion, as in MGSampler (Zhi et al. 2021); time counts as a
    little motion, so where nothing moves the two are equal. A clip with fewer frames than n repeats
    some.
    """
    if n < 1:
        raise ConfigError(f"`frames` must be at least 1, got {n}.")
    start, stop = span or (0.0, clip.duration)
    ends = np.append(clip.times[1:], clip.duration)
    shown = ends - clip.times  # (T,) seconds
    inside = (np.minimum(ends, stop) - np.maximum(clip.times, start)).clip(min=0)
    if rule == "motion":  # a change belongs to both its frames, half to each
        moved = (clip.motion + np.append(clip.motion[1:], 0.0)) / 2
        rate = np.divide(moved, shown, out=np.zeros_like(shown), where=shown > 0)
        inside *= STILL + rate
    edges = inside.cumsum()
    if not edges[-1] > 0:
        raise ConfigError(
            f"`span` must lie in 0 to {clip.duration:g} s, got {start:g} to {stop:g}."
        )
    middles = (np.arange(n) + 0.5) / n
    # A middle that falls on an edge belongs to the later frame, however the sums were rounded.
    chosen = np.searchsorted(edges / edges[-1], middles + 1e-9, side="right")
    return np.minimum(chosen, len(edges) - 1).tolist()


def segments(clip: Clip, seconds: float) -> list[Span]:
    """Start and end of consecutive parts of `seconds`. The rest at the end is a part of its own if
    it is at least half as long, else it belongs to the last one. `sample` takes each as its
    span."""
    if seconds <= 0:
        raise ConfigError(f"`seconds` must be above 0, got {seconds:g}.")
    parts = max(1, int(clip.duration / seconds + 0.5))
    starts = [number * seconds for number in range(parts)]
    return list(zip(starts, [*starts[1:], clip.duration], strict=True))


def _frames(data: bytes) -> Iterator[Frame]:
    """The frames of any kind of clip."""
    if video.is_video(data):
        yield from video.frames(data)
    elif frame_folders.is_archive(data):
        for number, (name, file) in enumerate(frame_folders.files(data)):
            yield _still(number / FRAME_RATE, 1 / FRAME_RATE, partial(_named, name, file))
    else:
        time = 0.0
        for seconds, pixels in animation(data):
            yield _still(time, seconds, pixels.contiguous)
            time += seconds


def _named(name: str, file: bytes) -> Tensor:
    try:
        return decode_still(file)
    except BadImage as error:
        raise BadClip(f"frame `{name}`: {error}") from error


def _still(time: float, seconds: float, pixels: Callable[[], Tensor]) -> Frame:
    def grey() -> Array:
        picture = Image.fromarray(np.ascontiguousarray(pixels().permute(1, 2, 0).numpy()))
        return np.asarray(picture.convert("L").resize((GREY, GREY), Image.Resampling.BOX))

    return Frame(time, seconds, pixels, grey)


def _check_length(seconds: float, frames: int, work: int) -> None:
    """Refuse a clip that would take minutes to read, as soon as that is known."""
    for value, most, unit in (
        (seconds, MAX_SECONDS, "seconds"),
        (frames, MAX_FRAMES, "frames"),
        (work / 1e6, MAX_WORK / 1e6, "megapixels of all frames"),
    ):
        if value > most:
            raise BadClip(f"{value:,.1f} {unit} is above the limit of {most:,.0f}")


def _read(path: Path) -> bytes:
    return frame_folders.pack(path) if path.is_dir() else read_file(path)
