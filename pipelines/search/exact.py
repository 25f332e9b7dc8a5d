"""The k nearest rows, exactly: what a sort of all cosines would put first, without the sort.

Flows in: rows of embeddings (N, e) and queries (Q, e). Flows out: for each query its k greatest
cosines and their rows. A cosine is the float64 product, rounded to float32; of equal ones the lower
row is first, so the answer does not depend on how the work was cut.

A quick product leaves each cosine uncertain by a known error. The k rows that look best are scored
exactly; whatever could still reach the least of them is scored too, and nothing else can.
"""

from __future__ import annotations

import torch
from torch import Tensor

Top = tuple[Tensor, Tensor]  # cosines (Q, k) float32, greatest first, and rows (Q, k) int64
PART = 8192  # rows scored at once
ROUNDING = 2.0**-23  # of an fp32 sum's term, twice what it can be


def top(rows: Tensor, asked: Tensor, k: int, mask: Tensor | None = None) -> Top:
    """The `k` of `rows` (N, e) nearest to each of `asked` (Q, e), both float32; of those that
    `mask` (N,) is true for, where there is one, and fewer than `k` where there are fewer.

    >>> cosines, found = top(torch.eye(3), torch.tensor([[0.6, 0.8, 0.0]]), 2)
    >>> cosines.tolist() == torch.tensor([[0.8, 0.6]]).tolist(), found.tolist()
    (True, [[1, 0]])
    """
    k = min(k, len(rows) if mask is None else int(mask.sum()))
    quick = asked @ rows.T  # (Q, N)
    if not quick.numel():
        return torch.zeros(len(asked), 0), torch.zeros(len(asked), 0, dtype=torch.int64)
    if mask is not None:
        quick.masked_fill_(~mask, -torch.inf)
    error = (rows.shape[1] + 4) * ROUNDING * asked.norm(dim=1) * _longest(rows)  # (Q,)
    found = [_top(rows, *one, k) for one in zip(asked, quick, error.tolist(), strict=True)]
    cosines, numbers = zip(*found, strict=True)
    return torch.stack(cosines), torch.stack(numbers)


def score(rows: Tensor, query: Tensor, chosen: Tensor) -> Tensor:
    """The exact cosines of the `chosen` (C,) rows with `query` (e,): (C,) float32."""
    parts = [rows[some].double() @ query.double() for some in chosen.split(PART)]
    return torch.cat(parts).float()


def _longest(rows: Tensor) -> float:
    return max(float(rows[at : at + PART].norm(dim=1).max()) for at in range(0, len(rows), PART))


def _top(rows: Tensor, query: Tensor, quick: Tensor, error: float, k: int) -> Top:
    """One query's, from its quick products (N,), each right to `error`."""
    if not k:
        return quick[:0], torch.zeros(0, dtype=torch.int64)
    floor = float(score(rows, query, quick.topk(k).indices).min())
    chosen = (quick >= floor - error).nonzero()[:, 0]  # rows, ascending
    cosines, order = score(rows, query, chosen).sort(descending=True, stable=True)
    return cosines[:k], chosen[order[:k]]
