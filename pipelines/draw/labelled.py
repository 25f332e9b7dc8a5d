"""The labelled images of shards, checked: every draw is made from them.

Flows in: the train and val rows of shards; five small columns are read, and no image. Flows out:
the classes by label, and the images of each split. The test split stays sealed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from trainables.data.shards import ShardSet
from trainables.errors import DataError
from trainables.features.few_shot import Member

Split: TypeAlias = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
COLUMNS = ("id", "sha256", "label", "class_name", "classes")


@dataclass(frozen=True)
class Labelled:
    """Classes in the order of their labels; members have the source's labels."""

    shards_sha256: str
    classes: Mapping[int, str]
    members: Mapping[Split, list[Member]]
    pooled: bool = False  # both splits are the same images, which the draw is to divide
    several: Mapping[Split, int] = field(
        default_factory=dict
    )  # images left out: of several classes

    def usable(self, split: Split) -> dict[int, list[Member]]:
        """The images of each class that a draw may take, each picture once.

        Of equal pictures in a class the first id stands for all. A picture with two labels is left
        out altogether, since one of them is wrong; so is one of val that is also in train. All of
        this is decided over all classes, so the parts of one data set agree.
        """
        labels: dict[str, set[int]] = {}
        for member in (*self.members["train"], *self.members["val"]):
            labels.setdefault(member.sha256, set()).add(member.label)
        apart = split == "val" and not self.pooled
        seen = {m.sha256 for m in self.members["train"]} if apart else set[str]()
        chosen: dict[int, list[Member]] = {label: [] for label in self.classes}
        for member in sorted(self.members[split], key=lambda m: m.id):
            if len(labels[member.sha256]) == 1 and member.sha256 not in seen:
                seen.add(member.sha256)
                chosen[member.label].append(member)
        return chosen

    def notes(self) -> Iterator[str]:
        """What is left out, in words."""
        for split, members in self.members.items():
            whole = len(members) + self.several.get(split, 0)
            if left := whole - sum(map(len, self.usable(split).values())):
                yield (
                    f"note: {left:,} of {whole:,} `{split}` images are left out: copies "
                    "of another, or pictures with two labels"
                )


def read_labelled(shards: ShardSet) -> Labelled:
    """The rows of train and val; a row that no task can be made with is a `DataError`."""
    members: dict[Split, list[Member]] = {}
    several: Counter[Split] = Counter()
    first: dict[int, dict[str, Any]] = {}  # the first row of each label
    for split in SPLITS:
        if split not in shards.splits:
            how = " `cliptune shards --split val-of-train` takes a tenth of train for val."
            raise DataError(
                f"`{shards.folder}` has no `{split}` images: a draw takes some of each."
                + (how if split == "val" else "")
            )
        rows = _of_one_class(shards.rows(split, COLUMNS), split, several)
        members[split] = _members(rows, first)
    classes = {label: str(first[label]["class_name"]) for label in sorted(first)}
    if len(classes) < 2:
        only = ", ".join(f"`{name}` (label {label})" for label, name in classes.items())
        raise DataError(f"`{shards.folder}` has a single class, {only}: there is no task.")
    hint = " With `encode --split draw`, draws divide the rows." if shards.embedded else ""
    for split in SPLITS:
        if missing := sorted(classes.keys() - {m.label for m in members[split]}):
            label = missing[0]
            raise DataError(
                f"class `{classes[label]}` (label {label}, as in row `{first[label]['id']}`) "
                f"has no image in `{split}`{_more(missing)}.{hint}"
            )
    return Labelled(shards.digest, classes, members, shards.pooled, several)


def _of_one_class(
    rows: Iterable[dict[str, Any]], split: Split, several: Counter[Split]
) -> Iterator[dict[str, Any]]:
    """The rows with one class each; rows of several classes are counted."""
    for row in rows:
        if row.get("classes") is None:
            yield row
        else:
            several[split] += 1


def _members(rows: Iterable[dict[str, Any]], first: dict[int, dict[str, Any]]) -> list[Member]:
    """The images of a split. `first` maps labels to names and back: one name a label, one label a
    name."""
    label_of = {row["class_name"]: label for label, row in first.items()}
    members = []
    for row in rows:
        label, name = row["label"], row["class_name"]
        if label is None or name is None:
            lacks = "label" if label is None else "class name"
            raise DataError(
                f"row `{row['id']}` (label {label}, class {name!r}) has no {lacks}: "
                "a draw needs images with classes."
            )
        known = first.setdefault(label, row)
        if known["class_name"] != name:
            raise DataError(
                f"label {label} is class `{name}` in row `{row['id']}` and "
                f"`{known['class_name']}` in row `{known['id']}`."
            )
        if label_of.setdefault(name, label) != label:
            other = first[label_of[name]]
            raise DataError(
                f"class `{name}` has label {label} in row `{row['id']}` and "
                f"{other['label']} in row `{other['id']}`."
            )
        members.append(Member(row["id"], row["sha256"], label))
    return members


def _more(found: list[int]) -> str:
    return f"; {len(found) - 1} other classes lack it too" if len(found) > 1 else ""
