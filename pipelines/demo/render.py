"""Draw a scene: a `Scene` in, a 96 x 96 RGB image out.

Every shape is a field over its own unit square, positive inside and roughly a distance, so that
smooth edges, outlines and fill patterns are a few array operations each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.demo.scenes import Domain, Scene, Thing

Field = NDArray[np.floating[Any]]
Colour = tuple[int, int, int]

SIDE = 96


@dataclass(frozen=True)
class Style:
    """How a domain draws: its paints, its outline (pixels), how coarse its grain and patterns."""

    paints: dict[str, Colour]
    fade: float  # share of pale paper mixed into every paint
    outline: float
    ink: Colour | None  # None: a darker shade of the thing's own colour
    wobble: float  # how unsteady the hand is, as a share of the radius
    grain: float  # noise, in grey levels
    pitch: float  # stripes, dots and checks per radius
    slant: float  # angle of stripes, radians
    hatch: float  # depth of pencil hatching over everything, in grey levels


STYLES: dict[Domain, Style] = {
    "base": Style(
        paints={
            "red": (220, 30, 35),
            "orange": (250, 140, 20),
            "yellow": (250, 225, 40),
            "green": (40, 150, 60),
            "blue": (40, 80, 215),
            "purple": (125, 45, 165),
            "pink": (250, 140, 185),
            "brown": (120, 72, 35),
            "black": (25, 25, 28),
            "white": (248, 248, 248),
        },
        fade=0.0,
        outline=1.0,
        ink=None,
        wobble=0.0,
        grain=5.0,
        pitch=5.0,
        slant=0.0,
        hatch=0.0,
    ),
    "shifted": Style(
        paints={
            "red": (200, 25, 60),
            "orange": (240, 120, 50),
            "yellow": (235, 210, 70),
            "green": (50, 160, 95),
            "blue": (50, 95, 190),
            "purple": (135, 70, 180),
            "pink": (245, 130, 170),
            "brown": (130, 85, 55),
            "black": (35, 35, 45),
            "white": (240, 240, 235),
        },
        fade=0.1,
        outline=1.3,
        ink=(45, 40, 50),
        wobble=0.05,
        grain=7.0,
        pitch=4.5,
        slant=0.7,
        hatch=6.0,
    ),
}
_PAPER = np.array((244, 238, 226), np.float32)


def render(scene: Scene) -> Image.Image:
    """Ground first, then the things from back to front, then the grain of the paper."""
    style = STYLES[scene.domain]
    rng = np.random.default_rng(scene.grain)
    canvas = ground(scene.ground, scene.domain) + np.float32(rng.uniform(-8, 8))
    for thing in scene.things:
        _paint(canvas, thing, style, rng)
    canvas += style.grain * rng.standard_normal((SIDE, SIDE, 1), np.float32)
    canvas += style.hatch * _hatching()
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def _paint(canvas: Field, thing: Thing, style: Style, rng: np.random.Generator) -> None:
    """Blend one thing into the part of the canvas that it covers."""
    radius = thing.radius * SIDE
    left, top = (max(0, int(c * SIDE - 1.2 * radius)) for c in (thing.x, thing.y))
    right, bottom = (min(SIDE, int(c * SIDE + 1.2 * radius) + 2) for c in (thing.x, thing.y))
    v, u = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
    u, v = (u - thing.x * SIDE) / radius, (v - thing.y * SIDE) / radius
    u, v = u * cos(thing.tilt) + v * sin(thing.tilt), v * cos(thing.tilt) - u * sin(thing.tilt)
    field = FIELDS[thing.kind.shape](u, v)
    if style.wobble:
        phases = rng.uniform(0, 2 * pi, 2)
        field = field + style.wobble * (np.sin(5 * u + phases[0]) + np.sin(5 * v + phases[1])) / 2
    depth = (field * radius)[..., None]  # pixels inside the edge
    base = np.array(style.paints[thing.kind.colour], np.float32)
    base = base + style.fade * (_PAPER - base)
    ink = _shade(base) if style.ink is None else np.array(style.ink, np.float32)
    fill = _fill(thing.kind.material, base, u, v, style)
    edge = np.clip(style.outline + 0.5 - depth, 0, 1)
    painted = fill + edge * (ink - fill)
    patch = canvas[top:bottom, left:right]
    patch += np.clip(depth + 0.5, 0, 1) * (painted - patch)


def _shade(colour: Field) -> Field:
    """A darker tone of a colour; of black, a lighter one, so that it shows at night."""
    return colour * 0.6 if colour.sum() > 150 else colour + 85


def _fill(material: str, base: Field, u: Field, v: Field, style: Style) -> Field:
    """The paint at each point, (H, W, 3): plain, patterned with a second tone, or lit."""
    second = base + 0.7 * (255 - base) if base.sum() < 600 else base * 0.55
    if material == "plain":
        return np.broadcast_to(base, (*u.shape, 3))
    if material == "shiny":
        light = np.clip(1 - np.hypot(u + 0.3, v + 0.35) / 0.75, 0, 1)[..., None]
        dark = np.clip(np.hypot(u + 0.3, v + 0.35) - 0.5, 0, 1)[..., None]
        return base + light * (255 - base) - 0.6 * dark * base
    s = u * cos(style.slant) + v * sin(style.slant)
    t = v * cos(style.slant) - u * sin(style.slant)
    wave, weft = np.sin(style.pitch * pi / 2 * t), np.sin(style.pitch * pi / 2 * s)
    pattern = {"striped": wave, "checked": wave * weft * 3, "dotted": np.abs(wave * weft) * 3 - 1.4}
    return base + np.clip(pattern[material] * 2 + 0.5, 0, 1)[..., None] * (second - base)


def _circle(u: Field, v: Field) -> Field:
    return 0.9 - np.hypot(u, v)


def _square(u: Field, v: Field) -> Field:
    return 0.8 - np.maximum(np.abs(u), np.abs(v))


def _triangle(u: Field, v: Field) -> Field:
    return np.minimum(0.75 - v, (0.95 * (v + 0.95) - 1.7 * np.abs(u)) / 1.95)


def _star(u: Field, v: Field) -> Field:
    """Fold the plane into one of ten equal wedges, then measure to the one edge left in it."""
    wedge = np.abs((np.arctan2(u, -v) + pi / 5) % (2 * pi / 5) - pi / 5)
    x, y = np.hypot(u, v) * np.cos(wedge), np.hypot(u, v) * np.sin(wedge)
    across, up = 0.42 * cos(pi / 5) - 1, 0.42 * sin(pi / 5)
    return ((1 - x) * up + y * across) / float(np.hypot(across, up))


def _heart(u: Field, v: Field) -> Field:
    lobes = 0.47 - np.hypot(np.abs(u) - 0.44, v + 0.3)
    tip = np.minimum((1.1 * (0.89 - np.abs(u)) - 0.87 * (v + 0.15)) / 1.4, v + 0.3)
    return np.maximum(lobes, tip)


def _diamond(u: Field, v: Field) -> Field:
    return (0.95 - 1.4 * np.abs(u) - np.abs(v)) / 1.72


def _cross(u: Field, v: Field) -> Field:
    long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.minimum(0.9 - long, 0.3 - short)


def _ring(u: Field, v: Field) -> Field:
    return 0.24 - np.abs(np.hypot(u, v) - 0.68)


def _moon(u: Field, v: Field) -> Field:
    return np.minimum(0.92 - np.hypot(u, v), np.hypot(u - 0.45, v + 0.1) - 0.66)


def _flower(u: Field, v: Field) -> Field:
    return (0.66 + 0.27 * np.cos(6 * np.arctan2(u, v)) - np.hypot(u, v)) * 0.7


FIELDS: dict[str, Callable[[Field, Field], Field]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "flower": _flower,
}

_GROUND_TONES: dict[Domain, dict[str, tuple[Colour, Colour]]] = {
    "base": {
        "paper": ((240, 240, 240), (240, 240, 240)),
        "sky": ((135, 190, 245), (215, 235, 252)),
        "grass": ((135, 200, 95), (165, 220, 125)),
        "sand": ((228, 205, 150), (210, 185, 130)),
        "night": ((25, 30, 75), (45, 55, 110)),
        "tiles": ((185, 190, 195), (130, 135, 140)),
        "wood": ((190, 140, 90), (165, 115, 70)),
        "wall": ((190, 105, 85), (215, 205, 195)),
    },
    "shifted": {
        "paper": ((238, 232, 220), (238, 232, 220)),
        "sky": ((160, 200, 230), (225, 235, 240)),
        "grass": ((160, 200, 120), (130, 180, 100)),
        "sand": ((225, 205, 165), (205, 185, 140)),
        "night": ((40, 42, 80), (60, 62, 105)),
        "tiles": ((195, 195, 190), (140, 140, 140)),
        "wood": ((185, 145, 105), (160, 120, 80)),
        "wall": ((185, 115, 100), (215, 205, 190)),
    },
}


@cache
def ground(name: str, domain: Domain) -> Field:
    """The empty ground, (96, 96, 3): two tones, mixed by a pattern of its own."""
    first, second = (np.array(tone, np.float32) for tone in _GROUND_TONES[domain][name])
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    speckle = np.random.default_rng(7).random((SIDE, SIDE), np.float32)
    row = np.floor(y / 12)
    mix = {
        "paper": np.zeros_like(y),
        "sky": y / SIDE,
        "grass": np.repeat(speckle[::6], 6, 0),
        "sand": speckle,
        "night": np.where(speckle > 0.99, 5.0, y / SIDE),
        "tiles": np.maximum(x % 16 < 1.5, y % 16 < 1.5),
        "wood": (np.sin(y / 2.5 + np.sin(x / 20)) + 1) / 2,
        "wall": np.maximum(y % 12 < 2, (x + 12 * (row % 2)) % 24 < 2),
    }[name]
    return (first + mix[..., None].astype(np.float32) * (second - first)).astype(np.float32)


@cache
def _hatching() -> Field:
    """Slanting pencil strokes over the whole sheet, (96, 96, 1), between -1 and 1."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    strokes = np.sin((x + y) * 1.3 + np.sin(x / 9)) * np.cos((x - y) / 17)
    return strokes[..., None].astype(np.float32)
