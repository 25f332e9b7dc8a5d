"""All captions and classes of one picture in one row.

Flows in: the row of a picture, and its later records. Flows out: one row with the captions of all,
and the class. Captions of one group (rows of one table with one image) are added up. Over several
groups, a caption stands as often as in the group that has it most often, so a picture told under
two names has no caption twice. The first record decides the id and the order of the captions, and
nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

Row = dict[str, Any]


def united(row: Row, later: Iterable[Row]) -> Row:
    """`row` with `later`. Where the records name several classes, the row lists them and has no
    label: no task of classification can be made with it."""
    later = iter(later)
    second = next(later, None)
    if second is None:
        return row
    captions: list[str] = []
    said: Counter[tuple[str | int, str]] = Counter()  # by each group
    most: Counter[str] = Counter()  # by the one that says it most often
    labels: set[int] = set()
    names: set[str] = set()
    several = False
    for number, one in enumerate(chain((row, second), later)):
        group = number if one["group"] is None else one["group"]
        for caption in one["captions"]:
            said[group, caption] += 1
            if said[group, caption] > most[caption]:
                most[caption] += 1
                captions.append(caption)
        labels |= {one["label"]} - {None}
        names |= {one["class_name"], *(one["classes"] or ())} - {None}
        several |= one["classes"] is not None
    several |= len(labels) > 1 or len(names) > 1
    return row | {
        "captions": captions,
        "label": None if several else next(iter(labels), None),
        "class_name": None if several else next(iter(names), None),
        "classes": sorted(names) if several else None,
    }
