"""Draws: one classification task each, as lists of images that everybody can read again.

Flows in and out: a JSON file of format `cliptune-draw-1`. It holds ids and hashes, no image, and
its own SHA-256, so an altered draw is never trained on by accident.
"""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainables.config import Task
from trainables.data.store import read_manifest
from trainables.errors import DataError, unknown
from trainables.features.classes import Classes
from trainables.features.manifest import divided_by_draws
from trainables.features.split import SplitFeatures
from trainables.files import read_hashed, sha256_json, write_hashed

FORMAT = "cliptune-draw-1"
Part = Literal["all", "base", "new"]
PARTS: tuple[Part, ...] = typing.get_args(Part)


@dataclass(frozen=True)
class Member:
    """One image of a draw."""

    id: str
    sha256: str
    label: int  # index into `Draw.names`


@dataclass(frozen=True)
class Draw:
    """Few labelled images a class for training, fewer for choosing, and the classes' words.

    `base` and `new` are the two halves of the classes (Zhou et al. 2022, CoCoOp): an adapter that
    is trained on one is also tested on the other. The test images of a draw are all of the test
    split that have one of its labels; they are not listed here, because that split is sealed.

    >>> few = read_draw(draw)
    >>> few.names, few.part, len(few.train)
    (('red', 'green', 'blue'), 'all', 12)
    >>> few.of(pairs, "train").labels[:4]
    tensor([0, 1, 2, 0])
    """

    dataset: str  # the folder's or the user's name for the data
    shards_sha256: str  # ShardSet.digest
    shots: int  # images a class in train; 0: all there are
    seed: int
    part: Part
    names: tuple[str, ...]  # class names as they stand in a prompt, by label
    labels: tuple[int, ...]  # the source's label of each
    template: str  # "a photo of a {}."
    train: tuple[Member, ...]
    val: tuple[Member, ...]
    texts: tuple[tuple[str, ...], ...] = ()  # of each class beside its name; (): of none
    ensemble: bool = False  # of those texts, instead of their mean
    missing: tuple[str, ...] = ()  # images of another's draw that the shards do not have

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise DataError(unknown("part", self.part, PARTS))
        if self.shots < 0:
            raise DataError(f"`shots` must be at least 0 (0: all images), got {self.shots}.")
        check_template(self.template)
        _check_names(self.names, self.labels)
        if self.texts and len(self.texts) != len(self.names):
            raise DataError(f"`texts` must be of {len(self.names)} classes, got {len(self.texts)}.")
        for split, members in (("train", self.train), ("val", self.val)):
            if empty := set(range(len(self.names))) - {m.label for m in members}:
                raise DataError(f"class `{self.names[min(empty)]}` has no image in `{split}`.")
        _check_once((*self.train, *self.val), len(self.names))

    @property
    def classes(self) -> Classes:
        return Classes(self.names, self.template, self.texts, ensemble=self.ensemble)

    def of(self, data: SplitFeatures, split: Literal["train", "val"]) -> SplitFeatures:
        """The images of the draw in a split's features, labelled."""
        members = self.train if split == "train" else self.val
        return data.take({member.id: member.label for member in members}, self.classes)

    @property
    def most_folds(self) -> int:
        """The most folds that there can be: as many as the class with the fewest shots has."""
        return min(Counter(member.label for member in self.train).values())

    def folds(self, count: int) -> list[Draw]:
        """`count` draws, each of which holds out a part of the shots as its `val` (which are images
        of the train split too). Each shot is held out once, and every class is in every part.

        >>> [(len(fold.train), len(fold.val)) for fold in read_draw(draw).folds(3)]
        [(8, 4), (8, 4), (8, 4)]
        """
        check_folds(count, self)
        seen: Counter[int] = Counter()
        part = []
        for member in self.train:  # dealt in turn, the classes beginning at different parts
            part.append((seen[member.label] + member.label) % count)
            seen[member.label] += 1
        dealt = list(zip(part, self.train, strict=True))
        return [
            dataclasses.replace(
                self,
                train=tuple(member for place, member in dealt if place != fold),
                val=tuple(member for place, member in dealt if place == fold),
            )
            for fold in range(count)
        ]

    def among(
        self, data: SplitFeatures, rows: Iterable[Mapping[str, Any]], learned: Draw | None = None
    ) -> SplitFeatures:
        """All images of the draw's classes, as of the test split; `rows` have `id` and `label`. An
        image under two labels is left out. Where draws alone divide the data, so are the images of
        this draw, those of the draw `learned` that was trained on, and copies of either."""
        label_of = {label: number for number, label in enumerate(self.labels)}
        own = {m.id for draw in (self, learned or self) for m in (*draw.train, *draw.val)}
        group_of = dict(zip(data.ids, data.groups.tolist(), strict=True))
        found = [(row["id"], row["label"], group_of[row["id"]]) for row in rows]
        labels: dict[int, set[int]] = {}
        for _, label, group in found:
            labels.setdefault(group, set()).add(label)
        left = {group for group, several in labels.items() if len(several) > 1}
        left |= {group_of[id_] for id_ in own & group_of.keys()}
        examples = {
            id_: label_of[label]
            for id_, label, group in found
            if label in label_of and group not in left
        }
        if not examples:
            raise DataError("the split has no image of the draw's classes.")
        return data.take(examples, self.classes)

    @property
    def key(self) -> str:
        """One hash for all of it: equal where the task is equal, image by image."""
        return sha256_json(_to_json(self))


def check_folds(count: int, draw: Draw) -> None:
    """Raise unless every fold can hold out, and train on, a shot of each class."""
    most = draw.most_folds
    if most < 2:
        raise DataError("`--folds` must be 0 with a draw of 1 shot: there is none to hold out.")
    if not 2 <= count <= most:
        rule = f"from 2 to {most}, the shots of the smallest class"
        raise DataError(f"`--folds` must be {rule}, got {count}.")


def check_template(template: str) -> None:
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise DataError(
            f"`template` must hold `{{}}` once, for the class name, and no other brace, "
            f"got {template!r}."
        )


def _check_names(names: Sequence[str], labels: Sequence[int]) -> None:
    if len(names) < 2:
        raise DataError(f"a draw needs at least 2 classes, got {len(names)}: {', '.join(names)}.")
    if len(labels) != len(names) or len(set(labels)) != len(labels):
        raise DataError(f"`labels` must be one for each of {len(names)} names, got {labels}.")
    label_of: dict[str, int] = {}
    for name, label in zip(names, labels, strict=True):
        if not name.strip():
            raise DataError(f"the class with label {label} has an empty name.")
        first = label_of.setdefault(name.casefold(), label)
        if first != label:
            raise DataError(
                f"class names must differ in more than case: labels {first} and {label} "
                f"are both `{name}`."
            )


def _check_once(members: Sequence[Member], classes: int) -> None:
    """Raise where a picture stands twice: it would train double, or be chosen by what it was
    trained on."""
    seen: dict[str, str] = {}
    for member in members:
        if not 0 <= member.label < classes:
            raise DataError(
                f"image `{member.id}` has label {member.label}, outside 0 to {classes - 1}."
            )
        first = seen.setdefault(member.sha256, member.id)
        if first != member.id:
            raise DataError(f"`{first}` and `{member.id}` are the same image.")
    if len(seen) < len(members):
        twice = next(m for n, m in enumerate(members) if m in members[:n])
        raise DataError(f"image `{twice.id}` is in the draw twice.")


def _to_json(draw: Draw) -> dict[str, Any]:
    # Tuples become lists, as they are after reading; the hash is of JSON and sees no difference.
    fields = dataclasses.asdict(draw)
    if not draw.texts:  # as draws were before there were any
        del fields["texts"]
    if not draw.ensemble:
        del fields["ensemble"]
    if not draw.missing:
        del fields["missing"]
    return {"format": FORMAT, **fields}


def write_draw(path: Path, draw: Draw) -> None:
    write_hashed(path, _to_json(draw))


def read_draw(path: Path) -> Draw:
    """The draw in `path`; one that is missing, altered or no draw is a `DataError` naming it.

    >>> read_draw(draw).template
    'a photo of a {}.'
    """
    value = read_hashed(path, FORMAT, "Make it again with `cliptune draw`.", sha256=str)
    del value["sha256"]
    try:
        return _from_json(value)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        DataError,
    ) as error:  # a right hash over what we never wrote
        raise DataError(f"`{path}` is not a draw: {error}") from None


def _from_json(value: Mapping[str, Any]) -> Draw:
    fields = {name: value[name] for name in value if name != "format"}
    for name in ("names", "labels"):
        fields[name] = tuple(fields[name])
    fields["texts"] = tuple(map(tuple, fields.get("texts", ())))
    fields["missing"] = tuple(fields.get("missing", ()))
    for split in ("train", "val"):
        fields[split] = tuple(Member(**member) for member in fields[split])
    fields["shards_sha256"] = str(fields["shards_sha256"])
    return Draw(**fields)


def about_draws(draw: Path | None, retain: Sequence[Path]) -> dict[str, Any]:
    """What a run's JSON says of its draws: where they lay and, for equality, their keys."""
    about: dict[str, Any] = {}
    if draw:
        about |= {"draw": str(draw.absolute()), "draw_key": read_draw(draw).key}
    if retain:
        about["retain"] = [str(path.absolute()) for path in retain]
        about["retain_keys"] = [read_draw(path).key for path in retain]
    return about


def measured(whole: SplitFeatures, draw: Draw | None, retain: Iterable[Draw]) -> SplitFeatures:
    """Val as each epoch measures it: the draw's images, or each image once where there is none, and
    beside them the tasks of `retain`."""
    own = whole.one_row_an_image() if draw is None else draw.of(whole, "val")
    return dataclasses.replace(own, others=tuple(one.of(whole, "val") for one in retain))


def check_retain(
    features: Path, paths: Sequence[Path], draw: Draw | None, task: Task
) -> list[Draw]:
    """The draws in `paths`, of the store's shards and of classes that training never sees."""
    if paths and task == "captioning":
        raise DataError("`--retain` is for adapters that tell classes apart: a captioner does not.")
    found = []
    for path in paths:
        one = check_draw(features, path)
        if draw is not None and (shared := set(one.labels) & set(draw.labels)):
            name = one.names[one.labels.index(min(shared))]
            raise DataError(
                f"`{path}` must hold classes that training never sees, got `{name}`, which is in "
                "the draw to train on: `cliptune draw --part base` and `--part new` share none."
            )
        found.append(one)
    return found


def check_divided(features: Path, draw: Path | None) -> None:
    """Raise where a store whose rows only draws divide is used without a draw."""
    if draw is None and divided_by_draws(features):
        raise DataError(
            f"`{features}` has no splits (`--split draw`): give a `--draw`, or encode it with "
            "`--split hash`."
        )


def check_draw(features: Path, path: Path) -> Draw:
    """The draw in `path`, made of the very shards that the feature store was made of."""
    draw, made_of = read_draw(path), read_manifest(features)["shards_sha256"]
    if draw.shards_sha256 != made_of:
        raise DataError(
            f"`{path}` was drawn from other shards ({draw.shards_sha256[:12]}) than `{features}` "
            f"was made of ({made_of[:12]}): draw again, or encode those shards."
        )
    return draw
