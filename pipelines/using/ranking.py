"""The images nearest to words.

Flows in: indexed images and queries. Flows out: for each query its matches, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.using.index import Indexed
from pipelines.using.model import Model
from pipelines.using.words import embed_words


@dataclass(frozen=True)
class Match:
    path: Path
    score: float  # cosine of image and query


@dataclass(frozen=True)
class Query:
    """What was asked for, and what is nearest, best first."""

    text: str
    matches: list[Match]


def rank(model: Model, found: Indexed, words: Sequence[str], top: int) -> list[Query]:
    """The `top` nearest images of each query; of equal ones the first by name."""
    scores = found.embeds @ embed_words(model.adapter, words).T  # (N, Q)
    queries = []
    for text, column in zip(words, scores.unbind(1), strict=True):
        order = column.argsort(descending=True, stable=True)[:top].tolist()
        queries.append(Query(text, [Match(found.paths[n], float(column[n])) for n in order]))
    return queries
