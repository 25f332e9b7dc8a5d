"""Rows as int8, a block at a time: a quarter of the bytes to read, and how far off that can be.

Flows in: blocks of float32 rows, then queries. Flows out: for each row an upper bound of its cosine
with each query.

A row is x = s c + r: int8 codes c, a step s for each column of its block, and what rounding left,
r / s, whose longest of the block is kept. So q x = (q s) c + (q s) (r / s). The query's q s is
written as two int8 levels, the first to 1 / 127 of its largest value, the second to 1 / 254 of
that; what even they leave is added up. By Cauchy and Schwarz no cosine is above its bound.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.hardware import has_int8

BLOCK = 8192  # rows with one set of steps
TOP = 127  # largest code
FINER = 2 * TOP  # steps of the second level in one of the first
SCALED = 128  # blocks for which queries are written at once
COLUMNS = 4  # fewer are multiplied no faster, two of them slower
ROUNDING = 2.0**-22  # of a product put together of two sums, four times what it can be


@dataclass(frozen=True)
class Codes:
    """The codes of B whole blocks, and what undoes them."""

    values: Tensor  # (B, BLOCK, e) int8
    steps: Tensor  # (B, e) float32, a column's
    misfit: Tensor  # (B,) float32, the greatest |r / s| of a block

    @staticmethod
    def none(width: int) -> Codes:
        """Of rows that fill no block."""
        shape = (0, BLOCK, width)
        return Codes(torch.zeros(shape, dtype=torch.int8), torch.zeros(0, width), torch.zeros(0))


def encode(block: Tensor) -> tuple[Tensor, Tensor, float]:
    """The codes (BLOCK, e), steps (e,) and misfit of a block of rows (BLOCK, e)."""
    steps = block.abs().amax(0) / TOP
    steps[steps == 0] = 1.0
    scaled = block.double() / steps.double()
    codes = scaled.round().clamp_(-TOP, TOP)
    rest = scaled.sub_(codes)
    return codes.to(torch.int8), steps, float(rest.norm(dim=1).max()) * (1 + 1e-6)


def at_most(codes: Codes, asked: Tensor, wanted: Tensor, out: Tensor) -> None:
    """Put into `out` (Q, B * BLOCK) upper bounds of the cosines of Q queries (Q, e); those of
    blocks that are not `wanted` (B,) become -inf."""
    out.fill_(-torch.inf)
    by_block, many = out.view(len(asked), -1, BLOCK), len(asked)
    products = torch.empty(BLOCK, max(2 * many, COLUMNS), dtype=torch.int32)  # stays in the cache
    for some in wanted.nonzero()[:, 0].split(SCALED):
        levels, unit, error = _levels(asked, codes.steps[some], codes.misfit[some])
        for place, block in enumerate(some.tolist()):
            torch._int_mm(codes.values[block], levels[place], out=products)
            coarse, fine = products[:, :many].float(), products[:, many : 2 * many].float()
            bounds = torch.addcmul(error[place], coarse, unit[place])
            bounds.addcmul_(fine, unit[place] / FINER)  # (BLOCK, Q)
            by_block[:, block] = bounds.T


def _levels(asked: Tensor, steps: Tensor, misfit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries as int8 columns (b, e, c) for each of b blocks, two levels each, the unit (b, Q) of
    the first, and how far off (b, Q) they are at most."""
    weights = asked.double() * steps.double()[:, None]  # (b, Q, e)
    unit = weights.abs().amax(2, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / TOP
    coarse = (weights / unit).round_()
    fine = ((weights - coarse * unit) / unit * FINER).round_()
    rest = weights - (coarse + fine / FINER) * unit
    error = weights.norm(dim=2) * misfit.double()[:, None] + rest.abs().sum(2) * TOP
    error += (coarse.abs() * unit).sum(2) * TOP * ROUNDING
    empty = max(0, COLUMNS - 2 * len(asked))
    columns = F.pad(torch.cat([coarse, fine], 1).to(torch.int8), (0, 0, 0, empty)).mT.contiguous()
    return columns, unit[..., 0].float(), error.float() * (1 + 1e-6)


@functools.cache
def fits(width: int) -> bool:
    """Whether this CPU multiplies int8 rows of `width` quickly, and without losing a bit: older
    ones add pairs of products in 16 bits, where the largest do not fit."""
    if not has_int8():
        return False
    rows = torch.full((16, width), TOP, dtype=torch.int8)
    rows[1::2] = -TOP
    columns = torch.full((width, COLUMNS), TOP, dtype=torch.int8)
    columns[:, 1::2] = -TOP
    return torch.equal(torch._int_mm(rows, columns).long(), rows.long() @ columns.long())
