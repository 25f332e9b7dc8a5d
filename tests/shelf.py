"""A feature store of labelled images and two draws of it, for the tests of what CLIP retains.

The label of an image is its caption's colour: the first three are base, the last three new.
"""

from __future__ import annotations

from pathlib import Path

from tests.tiny import COLOURS, tiny_features
from trainables.features.few_shot import Draw, Member, Part, write_draw
from trainables.files import sha256_bytes

IMAGES, VAL = 48, 36


def shelf(folder: Path, clip: Path) -> Path:
    """The store in `folder/features`, and `base.json` and `new.json` beside it."""
    store = tiny_features(folder / "features", images=IMAGES, val=VAL, pixels=True, clip=clip)
    for part, labels in (("base", (0, 1, 2)), ("new", (3, 4, 5))):
        write_draw(folder / f"{part}.json", draw(labels, "base" if part == "base" else "new"))
    write_draw(folder / "pair.json", draw((4, 5), "new"))
    return store


def draw(
    labels: tuple[int, ...],
    part: Part = "all",
    shards: str = "",
    images: int = IMAGES,
    val: int = VAL,
) -> Draw:
    members = {
        split: tuple(
            Member(f"{split}-{i:03}", sha256_bytes(f"{split}{i}".encode()), labels.index(i % 6))
            for i in range(count)
            if i % 6 in labels
        )
        for split, count in (("train", images), ("val", val))
    }
    return Draw(
        **{"dataset": "colours", "shards_sha256": shards, "shots": 0, "seed": 1, "part": part},
        names=tuple(COLOURS[label] for label in labels),
        labels=labels,
        template="a photo of a {}.",
        **members,
    )
