"""Making a draw.

Flows in: the labelled images of shards, and the task that is wanted. Flows out: a `Draw`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.draw.class_names import Words
from pipelines.draw.labelled import Labelled, Split
from trainables.config import check
from trainables.errors import ConfigError, DataError, unknown
from trainables.features.few_shot import PARTS, Draw, Member, Part

VAL_SHOTS = 4  # at most, a class: CoOp's rule, so that choosing costs less than training


@dataclass(frozen=True)
class Task:
    """The draw that is wanted."""

    dataset: str
    shots: int
    seed: int
    part: Part
    words: Words
    fewer: bool = False

    def __post_init__(self) -> None:
        check(self.shots >= 0, "shots", "at least 0 (0: all images)", self.shots)
        if self.part not in PARTS:
            raise ConfigError(unknown("part", self.part, PARTS))


def make_draw(data: Labelled, task: Task) -> Draw:
    """`shots` images a class of train and at most 4 of val; all of both where `shots` is 0.

    A pure function of the images' ids and the task. Each image has a rank of its own, so
    neither the shards' order nor another class matters, and fewer shots are the first of more.
    """
    ranked = {
        split: {
            label: sorted(images, key=lambda m: _rank(task.seed, m.id))
            for label, images in data.usable(split).items()
        }
        for split in data.members
    }
    wanted: dict[Split, int] = {"train": task.shots, "val": min(task.shots, VAL_SHOTS)}

    if data.pooled and not task.shots:
        raise DataError(
            "`--shots` must be at least 1 where draws divide the data, got 0: the rest is test."
        )

    def take(split: Split, label: int) -> list[Member]:
        images = ranked[split][label]
        if data.pooled and split == "val":
            images = images[task.shots :]
        check_enough(data, task, split, label, len(images), wanted[split])
        return images[: wanted[split] or None]

    return assemble(data, task, take)


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()


def check_enough(
    data: Labelled, task: Task, split: Split, label: int, found: int, wanted: int
) -> None:
    """Raise unless a class has the images it needs, or `--fewer` was said and it has some."""
    about = f"class `{data.classes[label]}` (label {label})"
    if found == 0:
        raise DataError(f"{about} has no usable image in `{split}`.")
    if found < wanted and not task.fewer:
        raise DataError(
            f"{about} has {found} of the {wanted} `{split}` images that {task.shots} shots need; "
            "`--fewer` takes what there is."
        )


def assemble(data: Labelled, task: Task, take: Callable[[Split, int], Sequence[Member]]) -> Draw:
    """The draw of the part's classes, with labels from 0; `take` gives the images of a class."""
    words = dict(zip(data.classes, task.words.of(list(data.classes.values())), strict=True))
    _check_distinct(data, words)
    labels = part_of(list(data.classes), task.part)
    if len(labels) < 2:
        raise DataError(
            f"part `{task.part}` of {len(words)} classes is {len(labels)} class: there is no task."
        )
    new = {label: place for place, label in enumerate(labels)}
    members = {
        split: tuple(
            Member(m.id, m.sha256, new[label])
            for label in labels
            for m in sorted(take(split, label), key=lambda m: m.id)
        )
        for split in data.members
    }
    return Draw(
        dataset=task.dataset,
        shards_sha256=data.shards_sha256,
        shots=task.shots,
        seed=task.seed,
        part=task.part,
        names=tuple(words[label] for label in labels),
        labels=tuple(labels),
        template=task.words.template,
        train=members["train"],
        val=members["val"],
        texts=task.words.texts_of([data.classes[label] for label in labels]),
        ensemble=task.words.ensemble,
    )


def part_of(labels: Sequence[int], part: Part) -> list[int]:
    """CoOp's halves of the classes by label: the first ceil(C / 2) are base, the rest new.

    >>> part_of([0, 1, 2, 3, 4], "base"), part_of([0, 1, 2, 3, 4], "new")
    ([0, 1, 2], [3, 4])
    """
    labels = sorted(labels)
    half = math.ceil(len(labels) / 2)
    return {"all": labels, "base": labels[:half], "new": labels[half:]}[part]


def _check_distinct(data: Labelled, words: Mapping[int, str]) -> None:
    """Raise where two classes share a name, over all classes: base and new are also tested
    together."""
    first: dict[str, int] = {}
    for label, name in words.items():
        other = first.setdefault(name.casefold(), label)
        if other != label:
            raise DataError(
                f"classes `{data.classes[other]}` (label {other}) and `{data.classes[label]}` "
                f"(label {label}) are both called `{name}`; tell them apart with `--words FILE`."
            )
