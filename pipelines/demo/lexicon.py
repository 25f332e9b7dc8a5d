"""The words of each domain: names for every concept, and the five people who use them.

The shifted domain keeps the base domain's usual word for a concept as its own first choice, and
adds words and sentences that the base domain never uses.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from pipelines.demo.scenes import Domain

Words = tuple[str, ...]
Noun = tuple[str, str]  # singular, plural
W = TypeVar("W", str, Noun)


@dataclass(frozen=True)
class Annotator:
    """A person: sentence frames, reading order, and how likely each detail is to be mentioned."""

    frames: Words
    order: Literal["across", "down", "size"]
    colour: float = 1.0
    material: float = 1.0
    size: float = 1.0
    relates: bool = False
    articles: bool = True


@dataclass(frozen=True)
class Vocabulary:
    """Every concept of a scene with the words that may name it, and the people who speak.

    The first word for a concept is the usual one; with probability `novelty` another one is used.
    """

    shapes: Mapping[str, tuple[Noun, ...]]
    colours: Mapping[str, Words]
    materials: Mapping[str, Words]
    sizes: Mapping[str, Words]
    grounds: Mapping[str, Words]
    relations: Mapping[str, Words]
    numbers: Mapping[int, str]
    things: Noun
    joiner: str
    novelty: float
    annotators: tuple[Annotator, ...]

    def word(self, names: tuple[W, ...], rng: random.Random) -> W:
        """One of a concept's names: the usual one, or with probability `novelty` another."""
        if len(names) > 1 and rng.random() < self.novelty:
            return rng.choice(names[1:])
        return names[0]


BASE = Vocabulary(
    shapes={
        "circle": (("ball", "balls"), ("circle", "circles")),
        "square": (("box", "boxes"), ("square", "squares")),
        "triangle": (("triangle", "triangles"),),
        "star": (("star", "stars"),),
        "heart": (("heart", "hearts"),),
        "diamond": (("diamond", "diamonds"),),
        "cross": (("cross", "crosses"), ("plus", "pluses")),
        "ring": (("ring", "rings"),),
        "moon": (("moon", "moons"),),
        "flower": (("flower", "flowers"),),
    },
    colours={
        "red": ("red",),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green",),
        "blue": ("blue",),
        "purple": ("purple",),
        "pink": ("pink",),
        "brown": ("brown",),
        "black": ("black",),
        "white": ("white",),
    },
    materials={
        "striped": ("striped",),
        "dotted": ("dotted", "spotted"),
        "checked": ("checked",),
        "shiny": ("shiny",),
    },
    sizes={"small": ("small", "little"), "big": ("big", "large")},
    grounds={
        "paper": ("on white paper", "on a plain white background"),
        "sky": ("in the sky", "against a light blue sky"),
        "grass": ("on grass", "on the green grass"),
        "sand": ("on sand", "in the sand"),
        "night": ("in the night sky", "against a dark sky"),
        "tiles": ("on grey tiles", "on a tiled floor"),
        "wood": ("on wood", "on a wooden table"),
        "wall": ("on a brick wall", "in front of bricks"),
    },
    relations={
        "left": ("to the left of", "left of", "next to"),
        "right": ("to the right of", "right of", "next to"),
        "above": ("above", "over"),
        "below": ("below", "under"),
        "around": ("around", "surrounding"),
    },
    numbers={1: "one", 2: "two", 3: "three", 4: "four"},
    things=("shape", "shapes"),
    joiner="and",
    novelty=0.5,
    annotators=(
        Annotator(("{things} {ground}", "a picture of {things} {ground}"), "across"),
        Annotator(
            ("{things}", "you see {things}", "an image of {things}"),
            "down",
            size=0.5,
            relates=True,
        ),
        Annotator(
            ("{things} , {ground}", "{ground} : {things}"),
            "across",
            material=0.6,
            size=0.3,
            articles=False,
        ),
        Annotator(
            ("{count} {noun} : {things}", "{count} {noun} {ground} , {things}"),
            "size",
            colour=0.9,
            size=0.7,
        ),
        Annotator(
            ("{ground} you find {things}", "{ground} , {things}", "look , {things} {ground}"),
            "down",
            material=0.8,
            size=0.4,
            relates=True,
        ),
    ),
)

SHIFTED = Vocabulary(
    shapes={
        "circle": (("ball", "balls"), ("orb", "orbs"), ("disc", "discs")),
        "square": (("box", "boxes"), ("crate", "crates"), ("block", "blocks")),
        "triangle": (("triangle", "triangles"), ("wedge", "wedges"), ("pyramid", "pyramids")),
        "star": (("star", "stars"), ("starburst", "starbursts")),
        "heart": (("heart", "hearts"), ("valentine", "valentines")),
        "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses"), ("kite", "kites")),
        "cross": (("cross", "crosses"), ("crucifix", "crucifixes")),
        "ring": (("ring", "rings"), ("hoop", "hoops"), ("doughnut", "doughnuts")),
        "moon": (("moon", "moons"), ("crescent", "crescents"), ("sickle", "sickles")),
        "flower": (("flower", "flowers"), ("blossom", "blossoms"), ("daisy", "daisies")),
    },
    colours={
        "red": ("red", "crimson", "scarlet"),
        "orange": ("orange", "tangerine", "amber"),
        "yellow": ("yellow", "golden", "lemon"),
        "green": ("green", "emerald", "olive"),
        "blue": ("blue", "azure", "cobalt"),
        "purple": ("purple", "violet", "lilac"),
        "pink": ("pink", "rosy", "salmon"),
        "brown": ("brown", "chestnut", "tan"),
        "black": ("black", "ebony", "inky"),
        "white": ("white", "ivory", "snowy"),
    },
    materials={
        "striped": ("striped", "banded", "lined"),
        "dotted": ("dotted", "polka", "speckled"),
        "checked": ("checked", "chequered", "plaid"),
        "shiny": ("shiny", "glossy", "polished"),
    },
    sizes={"small": ("small", "tiny", "mini"), "big": ("big", "huge", "giant")},
    grounds={
        "paper": ("on white paper", "on a blank sheet", "across an empty page"),
        "sky": ("in the sky", "among the heavens", "during a cloudless day"),
        "grass": ("on grass", "upon a meadow", "across the lawn"),
        "sand": ("on sand", "upon a beach", "across the desert"),
        "night": ("in the night sky", "during a starry evening", "amid darkness"),
        "tiles": ("on a tiled floor", "upon a grid", "across the pavement"),
        "wood": ("on a wooden table", "upon timber", "across oak planks"),
        "wall": ("on a brick wall", "upon masonry", "by a house front"),
    },
    relations={
        "left": ("to the left of", "west of", "beside"),
        "right": ("to the right of", "east of", "beside"),
        "above": ("above", "on top of", "higher than"),
        "below": ("below", "underneath", "lower than"),
        "around": ("containing", "that holds", "with a core of"),
    },
    numbers={1: "one", 2: "two", 3: "three", 4: "four"},
    things=("doodle", "doodles"),
    joiner="with",
    novelty=0.2,
    annotators=(
        Annotator(("somebody sketched {things} {ground}",), "across"),
        Annotator(("drawing of {things}", "we notice {things}"), "down", size=0.5, relates=True),
        Annotator(("{ground} ; {things}",), "across", material=0.6, size=0.3, articles=False),
        Annotator(
            ("{count} {noun} , namely {things}", "{ground} they drew {count} {noun} , {things}"),
            "size",
            colour=0.9,
            size=0.7,
        ),
        Annotator(
            ("the artist put {things} {ground}", "{ground} our eyes meet {things}"),
            "down",
            material=0.8,
            size=0.4,
            relates=True,
        ),
    ),
)

VOCABULARIES: Mapping[Domain, Vocabulary] = {"base": BASE, "shifted": SHIFTED}
