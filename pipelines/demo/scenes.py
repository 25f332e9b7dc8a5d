"""Invent scenes: (domain, split, index, seed) in, the things and their places out.

A scene is symbols only. `render.py` turns it into pixels and `sentences.py` into sentences. A hash
of its composition decides in which split a scene may appear, so no two splits share even the same
arrangement of the same things, let alone the same image.
"""

import random
import zlib
from dataclasses import dataclass, replace
from typing import Literal

Domain = Literal["base", "shifted"]
Split = Literal["train", "val", "test"]

DOMAINS: tuple[Domain, ...] = ("base", "shifted")
SPLITS: tuple[Split, ...] = ("train", "val", "test")

COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "cross",
    "ring",
    "moon",
    "flower",
)
MATERIALS = ("plain", "striped", "dotted", "checked", "shiny")
SIZES = ("small", "medium", "big")
GROUNDS = ("paper", "sky", "grass", "sand", "night", "tiles", "wood", "wall")

_RADII = {"small": 0.12, "medium": 0.16, "big": 0.20}
_ROOM = {1: 1.5, 2: 1.2, 3: 0.9, 4: 0.95}  # the more things, the smaller all of them
_SPOTS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0.5, 0.5),), ((0.35, 0.4),), ((0.65, 0.6),)),
    2: (
        ((0.26, 0.5), (0.74, 0.5)),
        ((0.5, 0.26), (0.5, 0.74)),
        ((0.28, 0.28), (0.72, 0.72)),
        ((0.28, 0.72), (0.72, 0.28)),
    ),
    3: (
        ((0.17, 0.5), (0.5, 0.5), (0.83, 0.5)),
        ((0.5, 0.17), (0.5, 0.5), (0.5, 0.83)),
        ((0.5, 0.25), (0.25, 0.72), (0.75, 0.72)),
        ((0.25, 0.28), (0.75, 0.28), (0.5, 0.75)),
    ),
    4: (
        ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
        ((0.5, 0.19), (0.2, 0.5), (0.8, 0.5), (0.5, 0.81)),
    ),
}
_JITTER = 0.04
_ROOMY = ("circle", "square", "triangle", "heart", "flower")  # another thing fits inside
_SHARE: dict[Split, range] = {"train": range(0, 6), "val": range(6, 8), "test": range(8, 10)}


@dataclass(frozen=True)
class Kind:
    """What a thing looks like, wherever it stands."""

    shape: str
    colour: str
    material: str
    size: str


@dataclass(frozen=True)
class Thing:
    """A kind at a place: centre and radius as fractions of the frame, tilt in radians."""

    kind: Kind
    x: float
    y: float
    radius: float
    tilt: float


@dataclass(frozen=True)
class Scene:
    """Things on a ground, listed from back to front; `grain` seeds all that is left to chance."""

    domain: Domain
    ground: str
    things: tuple[Thing, ...]
    nested: bool
    grain: int


def invent(domain: Domain, split: Split, index: int, seed: int = 0) -> Scene:
    """The scene at `index` of a split: the first one drawn whose composition belongs there."""
    rng = random.Random(f"{domain}/{split}/{index}/{seed}")
    while True:
        scene = _sample(domain, rng)
        if _bucket(scene) in _SHARE[split]:
            return scene


def invent_one(domain: Domain, split: Split, colour: str, index: int, seed: int = 0) -> Scene:
    """A scene with a single thing of a given colour, for a class of colours."""
    rng = random.Random(f"{domain}/{split}/{colour}/{index}/{seed}")
    while True:
        kind = replace(_kind(rng), colour=colour)
        ground, things = rng.choice(GROUNDS), _spread([kind], rng)
        scene = Scene(domain, ground, things, False, rng.getrandbits(48))
        if _bucket(scene) in _SHARE[split]:
            return scene


def _bucket(scene: Scene) -> int:
    kinds = [thing.kind for thing in scene.things]
    return zlib.crc32(f"{scene.ground}/{scene.nested}/{kinds}".encode()) % 10


def _sample(domain: Domain, rng: random.Random) -> Scene:
    count = rng.choices((1, 2, 3, 4), (10, 40, 30, 20))[0]
    kinds = _kinds(count, rng)
    nested = count == 2 and kinds[0].shape in _ROOMY and kinds[0] != kinds[1] and rng.random() < 0.4
    things = _nest(kinds, rng) if nested else _spread(kinds, rng)
    return Scene(domain, rng.choice(GROUNDS), things, nested, rng.getrandbits(48))


def _kind(rng: random.Random) -> Kind:
    return Kind(
        shape=rng.choice(SHAPES),
        colour=rng.choice(COLOURS),
        material=rng.choices(MATERIALS, (4, 2, 2, 1, 2))[0],
        size=rng.choices(SIZES, (3, 4, 3))[0],
    )


def _kinds(count: int, rng: random.Random) -> list[Kind]:
    """The kinds of the things: mostly all different; now and then the same kind several times, so
    that counting matters."""
    kinds = [_kind(rng) for _ in range(count)]
    if count > 1 and rng.random() < 0.25:
        repeats = rng.randint(2, count)
        kinds[:repeats] = [kinds[0]] * repeats
    return kinds


def _spread(kinds: list[Kind], rng: random.Random) -> tuple[Thing, ...]:
    spots = list(rng.choice(_SPOTS[len(kinds)]))
    rng.shuffle(spots)
    return tuple(
        Thing(
            kind,
            x + rng.uniform(-_JITTER, _JITTER),
            y + rng.uniform(-_JITTER, _JITTER),
            _RADII[kind.size] * _ROOM[len(kinds)],
            rng.uniform(-0.15, 0.15),
        )
        for kind, (x, y) in zip(kinds, spots, strict=True)
    )


def _nest(kinds: list[Kind], rng: random.Random) -> tuple[Thing, ...]:
    """A small thing inside a big one; the sizes are set by the nesting."""
    x, y = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)
    outer = Kind(kinds[0].shape, kinds[0].colour, kinds[0].material, "big")
    inner = Kind(kinds[1].shape, kinds[1].colour, "plain", "small")
    return (
        Thing(outer, x, y, 0.36, rng.uniform(-0.1, 0.1)),
        Thing(inner, x, y, 0.15, rng.uniform(-0.1, 0.1)),
    )
