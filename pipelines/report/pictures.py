"""Test pictures: those found for a caption, and the captions said of a picture.

Flows in: the parsed `gallery` and `captions` of result.json, whose texts and pictures come from
strangers. Flows out: plain values, in which a picture is either a JPEG data URI or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainables.errors import DataError, unknown

JPEG = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")
KINDS = ("best", "worst")


@dataclass(frozen=True)
class Picture:
    id: str
    score: float | None
    hit: bool
    thumb: str  # a data URI, or empty


@dataclass(frozen=True)
class Query:
    """A test caption, its own picture, and the five nearest before and after adapting."""

    text: str
    image_id: str
    truth: str  # a data URI, or empty
    before: list[Picture]
    after: list[Picture]


@dataclass(frozen=True)
class Said:
    """One row's caption of a picture: its words, and whether a reference has each of them too."""

    name: str  # of the row
    words: list[tuple[str, bool]]
    score: float | None  # CIDEr-D

    @property
    def text(self) -> str:
        return " ".join(word for word, _ in self.words)


@dataclass(frozen=True)
class Captioned:
    """A test picture, or a clip, with people's captions and each row's."""

    id: str
    kind: str  # one of KINDS: where the chosen row's CIDEr-D is highest, or lowest
    thumbs: list[str]  # data URIs or empty; of a clip several, in time order
    references: list[str]
    said: list[Said]


def read_query(raw: Mapping[str, Any]) -> Query:
    return Query(
        text=str(raw["query"]),
        image_id=str(raw["image_id"]),
        truth=_jpeg(raw["truth"]),
        before=[_picture(p) for p in raw["before"]],
        after=[_picture(p) for p in raw["after"]],
    )


def read_captioned(raw: Mapping[str, Any], rows: Collection[str]) -> Captioned:
    """The pictures with captions. `rows` are the names of the rows that can have said something."""
    references = [str(text) for text in raw["references"]]
    return Captioned(
        id=str(raw["id"]),
        kind=one_of("kind", str(raw["kind"]), KINDS),
        thumbs=[_jpeg(thumb) for thumb in raw["thumbs"]],
        references=references,
        said=[
            Said(
                name=one_of("row", str(said["name"]), rows),
                words=_marked(str(said["text"]), references),
                score=said.get("cider_d"),
            )
            for said in raw["said"]
        ],
    )


def one_of(kind: str, name: str, choices: Collection[str]) -> str:
    if name not in choices:
        raise DataError(unknown(kind, name, choices))
    return name


def _marked(text: str, references: Sequence[str]) -> list[tuple[str, bool]]:
    """The words of `text`, each with whether all of its letters stand as a word in a reference."""
    known = {word for reference in references for word in _letters(reference)}
    return [(word, known.issuperset(_letters(word))) for word in text.split()]


def _letters(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _picture(raw: Mapping[str, Any]) -> Picture:
    return Picture(str(raw["id"]), raw.get("score"), bool(raw["hit"]), _jpeg(raw["thumb"]))


def _jpeg(text: Any) -> str:
    """`text` if a browser can only take it for a JPEG, else empty."""
    return text if isinstance(text, str) and JPEG.fullmatch(text) else ""
