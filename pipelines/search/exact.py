"""The k nearest rows, exactly: what a sort of all cosines would put first, without the sort.

Flows in: rows of embeddings and queries. Flows out: for each query its k greatest cosines and their
rows. A cosine is the float64 product, rounded to float32; of equal ones the lower row is first, so
the answer does not depend on how the work was cut.

A quick product gives each cosine an upper bound. The k rows that look best are scored exactly;
whatever could still reach the least of them is scored too, and nothing else can be among the k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.search.codes import BLOCK, Codes, at_most, fits

Top = tuple[Tensor, Tensor]  # cosines (Q, k) float32, greatest first, and rows (Q, k) int64
FEW = 4096  # rows that are scored outright
TOGETHER = 32  # queries that share a pass
ROUNDING = 2.0**-23  # of an fp32 sum's term, twice what it can be


@dataclass(frozen=True)
class Rows:
    """N rows to search, of which the first are coded too."""

    values: Tensor  # (N, e) float32
    codes: Codes
    longest: float  # no row is longer

    @staticmethod
    def of(values: Tensor) -> Rows:
        """Rows without codes."""
        parts = [float(some.norm(dim=1).max()) for some in values.split(BLOCK) if len(some)]
        return Rows(values, Codes.none(values.shape[1]), max(parts, default=0.0) * (1 + 1e-6))


def top(
    rows: Rows, asked: Tensor, k: int, mask: Tensor | None = None, order: Tensor | None = None
) -> Top:
    """The `k` of N rows nearest to each of `asked` (Q, e) float32; of those that `mask` (N,) is
    true for, where there is one, and fewer than `k` where there are fewer. `order` (N,) int64 are
    other numbers of the rows, to be called and told apart by.

    >>> cosines, found = top(Rows.of(torch.eye(3)), torch.tensor([[0.6, 0.8, 0.0]]), 2)
    >>> found.tolist()
    [[1, 0]]
    """
    left = len(rows.values) if mask is None else int(mask.sum())
    k, found = min(k, left), []
    for some in asked.split(TOGETHER) if len(asked) else ():
        if left <= max(k, FEW):
            chosen = torch.arange(left) if mask is None else mask.nonzero()[:, 0]
            found += [best(rows.values, query, chosen, k, order) for query in some]
        else:
            bounds = _bounds(rows, some, mask)
            found += [_top(rows.values, *o, k, order) for o in zip(some, bounds, strict=True)]
    if not found:
        return torch.zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
    return torch.stack([one[0] for one in found]), torch.stack([one[1] for one in found])


def _bounds(rows: Rows, asked: Tensor, mask: Tensor | None) -> Tensor:
    """Upper bounds of the cosines (Q, N); -inf for what `mask` leaves out."""
    values, codes = rows.values, rows.codes
    coded = len(codes.steps) * BLOCK if fits(values.shape[1]) else 0
    bounds = torch.empty(len(asked), len(values))
    if coded:
        blocks = torch.ones(1) if mask is None else mask[:coded].view(-1, BLOCK)
        wanted = (blocks.any(1) if mask is not None else blocks.bool()).expand(len(codes.steps))
        at_most(codes, asked, wanted, bounds[:, :coded])
    error = (values.shape[1] + 4) * ROUNDING * rows.longest * asked.norm(dim=1, keepdim=True)
    torch.addmm(error, asked, values[coded:].T, out=bounds[:, coded:])
    return bounds if mask is None else bounds.masked_fill_(~mask, -torch.inf)


def _top(values: Tensor, query: Tensor, bounds: Tensor, k: int, order: Tensor | None) -> Top:
    """One query's, by bounds (N,) of its cosines."""
    floor = float(_score(values, query, bounds.topk(k).indices).min())
    return best(values, query, (bounds >= floor).nonzero()[:, 0], k, order)


def best(values: Tensor, query: Tensor, chosen: Tensor, k: int, order: Tensor | None) -> Top:
    """The best of the `chosen` (C,) rows, which ascend, scored exactly."""
    numbers = chosen
    if order is not None:
        numbers, by = order[chosen].sort()
        chosen = chosen[by]
    cosines, best = _score(values, query, chosen).sort(descending=True, stable=True)
    return cosines[:k], numbers[best[:k]]


def _score(values: Tensor, query: Tensor, chosen: Tensor) -> Tensor:
    """The exact cosines of the `chosen` (C,) rows with `query` (e,): (C,) float32."""
    parts = [values[some].double() @ query.double() for some in chosen.split(BLOCK)]
    return torch.cat(parts).float()
