"""Retrieval metrics: a split's embeddings flow in, exact ranks and their summaries flow out.

Ties are broken at random, and every number here is the exact expectation over that: a collapsed
model that scores C candidates alike gets R@1 = 1/C, not 1. With several positives (an image's
captions) the best of them counts, as in the Karpathy protocol, so no other positive can stand above
it. Where several positives tie with negatives, they count as one positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.batches import Predictions
from trainables.errors import DataError
from trainables.hardware import full

TILE = (512, 2048)  # rows and columns of the score matrix that exist at a time: 4 MiB
KEPT = 32  # tiles that the first pass keeps for the second: a small pool is multiplied once


@dataclass(frozen=True)
class Ranks:
    """Where the best positive of each query stands among the candidates that are not positives."""

    above: Tensor  # (Q,) int64, candidates with a strictly greater score
    ties: Tensor  # (Q,) int64, candidates with exactly the same score

    def expected(self) -> Tensor:
        """The mean rank under random tie breaking, 1 is best: (Q,) float64."""
        return 1.0 + self.above.double() + self.ties.double() / 2

    def reciprocal(self) -> Tensor:
        """The mean of 1/rank under random tie breaking: (Q,) float64."""
        low, count = self.above.double() + 1, self.ties.double() + 1
        # The harmonic sum 1/low + ... + 1/(low + ties), in closed form.
        sums = torch.digamma(low + count) - torch.digamma(low)
        return torch.where(self.ties == 0, 1 / low, sums / count)

    def hit(self, k: int) -> Tensor:
        """The probability of a rank of at most `k` under random tie breaking: (Q,) float64."""
        return ((k - self.above.double()) / (self.ties.double() + 1)).clamp(0, 1)


def ranks(
    queries: Tensor,  # (Q, e)
    candidates: Tensor,  # (C, e)
    query_groups: Tensor,  # (Q,) a candidate is a positive where its group equals the query's
    candidate_groups: Tensor,  # (C,)
    tile: tuple[int, int] = TILE,
) -> Ranks:
    """Exact ranks of the best positive of each query, in fp32, without the (Q, C) matrix in memory.

    >>> found = ranks(torch.eye(3)[[0, 2, 1]], torch.eye(3), torch.arange(3), torch.arange(3))
    >>> found.hit(1)
    tensor([1., 0., 0.], dtype=torch.float64)
    """
    return mutual_ranks(queries, candidates, query_groups, candidate_groups, tile)[0]


@torch.no_grad()
def mutual_ranks(
    rows: Tensor,  # (N, e)
    columns: Tensor,  # (M, e)
    row_groups: Tensor,  # (N,)
    column_groups: Tensor,  # (M,)
    tile: tuple[int, int] = TILE,
) -> tuple[Ranks, Ranks]:
    """`ranks` of the rows among the columns, and of the columns among the rows, of one product.

    A positive's score comes from the same tile, multiplied in the same way, as the scores it is
    compared with: two products of other shapes differ in the last bit and make or hide ties.
    """
    rows, columns = _finite(rows, "row"), _finite(columns, "column")
    row_groups, column_groups = row_groups.to(rows.device), column_groups.to(rows.device)
    _positives_exist(row_groups, column_groups)
    tiles = [(a, b) for a in _spans(len(rows), tile[0]) for b in _spans(len(columns), tile[1])]
    best_row = rows.new_full((len(rows),), -torch.inf)
    best_column = rows.new_full((len(columns),), -torch.inf)
    mixed: set[int] = set()  # the tiles with a positive
    kept: dict[int, Tensor] = {}

    def product(a: slice, b: slice) -> Tensor:
        with full(rows.device):
            return rows[a] @ columns[b].T  # tile

    for n, (a, b) in enumerate(tiles):
        if not torch.isin(row_groups[a], column_groups[b]).any():
            continue
        mixed.add(n)
        score = product(a, b)
        if len(kept) < KEPT:
            kept[n] = score
        masked = score.masked_fill(row_groups[a, None] != column_groups[b], -torch.inf)
        best_row[a] = best_row[a].maximum(masked.amax(1))
        best_column[b] = best_column[b].maximum(masked.amax(0))

    of_rows, of_columns = _Counts(best_row), _Counts(best_column)
    for n, (a, b) in enumerate(tiles):
        score = kept.pop(n) if n in kept else product(a, b)
        mask = row_groups[a, None] == column_groups[b] if n in mixed else None
        of_rows.add(a, score, mask)
        of_columns.add(b, score.T, None if mask is None else mask.T)
    return of_rows.ranks(), of_columns.ranks()


class _Counts:
    """Counts, tile by tile, of the candidates above and equal to each query's best positive."""

    def __init__(self, best: Tensor) -> None:
        self.best = best  # (Q,)
        self.above = torch.zeros_like(best, dtype=torch.int64)
        self.ties = torch.zeros_like(best, dtype=torch.int64)

    def add(self, span: slice, score: Tensor, positive: Tensor | None) -> None:
        """`score` (q, c) of the queries `span`; `positive` (q, c) where there are any."""
        best = self.best[span, None]
        counted = torch.empty_like(score)  # fp32 sums of 0 and 1 are exact and far faster than bool
        self.above[span] += torch.gt(score, best, out=counted).sum(1).long()
        torch.eq(score, best, out=counted)
        if positive is not None:
            counted.masked_fill_(positive, 0)
        self.ties[span] += counted.sum(1).long()

    def ranks(self) -> Ranks:
        return Ranks(self.above, self.ties)


def _spans(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _finite(embeds: Tensor, name: str) -> Tensor:
    """Raise for what is not finite: a NaN is greater than nothing, so it would rank every positive
    first."""
    norms = torch.linalg.vector_norm(embeds, dim=1)  # (rows,), with no copy of the input
    bad = int((~norms.isfinite()).sum())
    if bad:
        raise DataError(f"`{name}` embeddings must be finite, got {bad:,} with NaN or infinity.")
    return embeds.float()


def _positives_exist(row_groups: Tensor, column_groups: Tensor) -> None:
    for name, groups, others in (
        ("row", row_groups, column_groups),
        ("column", column_groups, row_groups),
    ):
        alone = int((~torch.isin(groups, others)).sum())
        if alone:
            raise DataError(f"every `{name}` must have a positive, {alone:,} have none.")


def per_query(
    predictions: Predictions, image_groups: Tensor, caption_groups: Tensor
) -> dict[str, Tensor]:
    """Every metric's value for every query, `t2i_*` (M,) and `i2t_*` (N,), float64 on the CPU.

    `*_medr` holds the expected ranks, to be summarised by their median; all others by their mean.
    """
    of_images, of_captions = mutual_ranks(
        predictions.image_embeds, predictions.text_embeds, image_groups, caption_groups
    )
    values: dict[str, Tensor] = {}
    for way, found in (("t2i", of_captions), ("i2t", of_images)):
        values |= {f"{way}_r{k}": found.hit(k).cpu() for k in (1, 5, 10)}
        values[f"{way}_medr"] = found.expected().cpu()
        values[f"{way}_mrr"] = found.reciprocal().cpu()
    return values


def summarise(values: dict[str, Tensor]) -> dict[str, float]:
    """`per_query` values to one number a metric; R@K and MRR lie in [0, 1]."""
    return {
        name: float(v.quantile(0.5) if name.endswith("_medr") else v.mean())
        for name, v in values.items()
    }


def retrieval_metrics(
    predictions: Predictions, image_groups: Tensor, caption_groups: Tensor
) -> dict[str, float]:
    """R@1, R@5, R@10, median rank and MRR of both directions over one split.

    Rows of one group (an image stored twice) are each other's positives: a caption may find any.

    >>> both = Predictions(torch.eye(3), torch.eye(3))
    >>> found = retrieval_metrics(both, torch.arange(3), torch.arange(3))
    >>> found["t2i_r1"], found["i2t_medr"]
    (1.0, 1.0)
    """
    return summarise(per_query(predictions, image_groups, caption_groups))
