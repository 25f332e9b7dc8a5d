"""All that is said of one picture in one row.

Flows in: the row of a picture and what later records of it say. Flows out: one row with the
captions of all, equal ones once, and the class. Whose record was first decides the id and the
order of the captions, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

Row = dict[str, Any]


def united(row: Row, later: Iterable[Row]) -> Row:
    """`row` with `later`. Where the records name several classes, the row has these and no label:
    no task of classification can be made with it."""
    later = iter(later)
    second = next(later, None)
    if second is None:
        return row
    captions: dict[str, None] = {}
    labels: set[int] = set()
    names: set[str] = set()
    several = False
    for one in chain((row, second), later):
        captions.update(dict.fromkeys(one["captions"]))
        labels |= {one["label"]} - {None}
        names |= {one["class_name"], *(one["classes"] or ())} - {None}
        several |= one["classes"] is not None
    several |= len(labels) > 1 or len(names) > 1
    return row | {
        "captions": list(captions),
        "label": None if several else next(iter(labels), None),
        "class_name": None if several else next(iter(names), None),
        "classes": sorted(names) if several else None,
    }
