"""Draw a set of short clips: three sizes in; clips, and a table of their captions, out.

One thing moves to a side, up or down, grows, shrinks, or stays as it is. Each path is walked in
both directions, so the mean of a clip's frames does not tell where the thing goes: only the order
of the frames does. The path leads from a brown box to a blue ball, and the thing hides the one that
it is at. (The tiny CLIP hardly sees where things stand, but it sees which are there.) Most clips
are GIFs, some are MP4s and some folders of frames.
"""

import io
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from pipelines.demo.lexicon import BASE
from pipelines.demo.render import render
from pipelines.demo.scenes import COLOURS, Kind, Scene, Split, Thing, invent_one

MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "stay")
CAPTIONS = 4
SIDE = 64  # pixels, the tiny CLIP's own size
SECONDS = 0.1  # a frame
_PATHS = {  # from where to where, in x, y and size; the opposite motion walks it backwards
    "right": ((-0.3, 0.0, 1.0), (0.3, 0.0, 1.0)),
    "down": ((0.0, -0.3, 1.0), (0.0, 0.3, 1.0)),
    "grow": ((0.0, 0.0, 0.55), (0.0, 0.0, 1.45)),
    "stay": ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)),
}
_OPPOSITE = {"left": "right", "up": "down", "shrink": "grow"}
_VERBS = {
    "left": ("moves left", "goes to the left", "slides to the left side", "travels left"),
    "right": ("moves right", "goes to the right", "slides to the right side", "travels right"),
    "up": ("moves up", "goes up", "rises to the top", "travels up"),
    "down": ("moves down", "goes down", "sinks to the bottom", "travels down"),
    "grow": ("grows", "gets bigger", "becomes big", "grows over time"),
    "shrink": ("shrinks", "gets smaller", "becomes small", "shrinks over time"),
    "stay": ("stays still", "does not move", "stands where it is", "stays in place"),
}
_FRAMES = (
    "the {thing} {verb}",
    "a {thing} {verb}",
    "a {thing} that {verb}",
    "look , the {thing} {verb}",
)
_BOX, _BALL = (Kind(*look, "plain", "medium") for look in (("square", "brown"), ("circle", "blue")))
_MARKS = {  # what stands at the ends of a path
    "across": (Thing(_BOX, 0.18, 0.5, 0.16, 0.0), Thing(_BALL, 0.82, 0.5, 0.16, 0.0)),
    "down": (Thing(_BOX, 0.5, 0.18, 0.16, 0.0), Thing(_BALL, 0.5, 0.82, 0.16, 0.0)),
}
_TREMBLE = 0.004  # of the hand, as a share of the picture


@dataclass(frozen=True)
class Film:
    """A scene with one thing, its motion, and the number of frames."""

    scene: Scene
    motion: str
    frames: int


def draw_clips(folder: Path, train: int, val: int, test: int, seed: int = 0) -> Path:
    """Write so many clips a split, and `clips.jsonl`, which `cliptune shards` reads; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
    rows = []
    for split, size in sizes.items():
        for index in range(size):
            film = invent_film(split, index, seed)
            name = _write(folder, f"{split}_{index:04}", index, drawn(film))
            rows.append({"image": name, "captions": clip_captions(film), "split": split})
    target = folder / "clips.jsonl"
    partial = target.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return partial.replace(target)


def invent_film(split: Split, index: int, seed: int = 0) -> Film:
    """The film at `index`: motions and colours in turn. No two splits share a thing on a ground."""
    rng = random.Random(f"film/{split}/{index}/{seed}")
    colour = COLOURS[index // len(MOTIONS) % len(COLOURS)]
    scene = invent_one("base", split, colour, index, seed)
    return Film(scene, MOTIONS[index % len(MOTIONS)], rng.randint(16, 24))


def clip_captions(film: Film) -> list[str]:
    """Four sentences, which differ in all but the thing and what it does."""
    rng = random.Random(f"words/{film.scene.grain}/{film.motion}")
    kind = film.scene.things[0].kind
    shapes, verbs = BASE.shapes[kind.shape], rng.sample(_VERBS[film.motion], CAPTIONS)
    said = []
    for frame, verb in zip(_FRAMES, verbs, strict=True):
        thing = f"{BASE.word(BASE.colours[kind.colour], rng)} {BASE.word(shapes, rng)[0]}"
        said.append(frame.format(thing=thing, verb=verb).replace("a orange", "an orange"))
    return said


def drawn(film: Film) -> list[Image.Image]:
    """The frames of a film, 64 x 64 RGB."""
    rng = random.Random(f"path/{film.scene.grain}")
    middle = rng.uniform(0.44, 0.56), rng.uniform(0.44, 0.56)
    motion = _OPPOSITE.get(film.motion, film.motion)
    start, end = _PATHS[motion] if motion == film.motion else _PATHS[motion][::-1]
    axis = {"right": "across", "down": "down"}.get(motion) or rng.choice(list(_MARKS))
    thing, pictures = film.scene.things[0], []
    for number in range(film.frames):
        share = number / (film.frames - 1)
        *place, size = (a + share * (b - a) for a, b in zip(start, end, strict=True))
        x, y = (
            a + b + rng.uniform(-_TREMBLE, _TREMBLE) for a, b in zip(middle, place, strict=True)
        )
        moved = replace(thing, x=x, y=y, radius=thing.radius * size)
        picture = render(replace(film.scene, things=(*_MARKS[axis], moved)))
        pictures.append(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return pictures


def _write(folder: Path, name: str, index: int, frames: list[Image.Image]) -> str:
    """Write a clip. One in ten is an MP4 and one in ten a folder, so that every reader has
    something to read."""
    if index % 10 == 8:
        (folder / f"{name}.mp4").write_bytes(_mp4(frames))
        return f"{name}.mp4"
    if index % 10 == 9:
        (folder / name).mkdir(exist_ok=True)
        for number, frame in enumerate(frames):
            frame.save(folder / name / f"{number}.jpg", quality=90)
        return name
    few = [frame.quantize(128, Image.Quantize.FASTOCTREE) for frame in frames]
    path, shown = folder / f"{name}.gif", round(1000 * SECONDS)
    few[0].save(path, save_all=True, append_images=few[1:], duration=shown, loop=0)
    return f"{name}.gif"


def _mp4(frames: list[Image.Image]) -> bytes:
    """Write an MP4 by FFmpeg's own MPEG-4, which is in every build of it."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=round(1 / SECONDS))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
        stream.codec_context.thread_count = 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
    return buffer.getvalue()
