"""The images nearest to words.

Flows in: embedded images, a block at a time, and embedded queries. Flows out: for each query its
matches, best first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from pipelines.search import exact
from pipelines.use.embedding import PART, embed_given
from pipelines.use.given import rows_of
from pipelines.use.model import Model
from trainables.training.predict import embed_images

Block = tuple[Sequence[Path], Tensor]  # n images, and their embeddings of unit length (n, e)


@dataclass(frozen=True)
class Match:
    """An image that was found. Its cosine with the query ranks, and says no more: how likely an
    image is meant depends on how many in the folder are, which no val knows."""

    path: Path
    cosine: float


@dataclass(frozen=True)
class Query:
    """What was asked for, and what is nearest, best first."""

    text: str
    matches: list[Match]


def rank(
    blocks: Iterable[Block], texts: Sequence[str], asked: Tensor, top: int
) -> tuple[list[Query], int]:
    """The `top` nearest images of each of Q queries (Q, e), of equal ones the first, and how many
    images there were."""
    queries, searched = [Query(text, []) for text in texts], 0
    for paths, embeds in blocks:
        searched += len(paths)
        found = matched(paths, exact.top(exact.Rows.of(embeds), asked, top), texts)
        for query, more in zip(queries, found, strict=True):
            query.matches.extend(more.matches)
            query.matches.sort(key=lambda match: match.cosine, reverse=True)
            del query.matches[top:]
    return queries, searched


def matched(paths: Sequence[Path], found: exact.Top, texts: Sequence[str]) -> list[Query]:
    """The answer to each query, from its cosines and rows, which number `paths`."""
    queries = []
    for text, cosines, rows in zip(texts, *found, strict=True):
        pairs = zip(rows.tolist(), cosines.tolist(), strict=True)
        queries.append(Query(text, [Match(paths[row], cosine) for row, cosine in pairs]))
    return queries


def embedded(model: Model | None, path: Path, width: int) -> Iterator[Block]:
    """The finished embeddings at `path`, as the model has them; without one, as they are."""
    if model is None:
        for names, embeds in rows_of(path, width, "search", PART):
            yield names, F.normalize(embeds, dim=-1)
        return
    for names, data in embed_given(model.adapter, path, "search", PART):
        yield names, embed_images(model.adapter, data).cpu()
