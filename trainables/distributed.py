"""A batch spread over workers: each worker's rows in, the rows of all out, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function
from torch.nn import functional as F


def gather(x: Tensor) -> Tensor:
    """The rows of all workers in rank order: (n, ...) here, (sum of n, ...) everywhere.

    Backward sums the gradient over workers. Each worker computes the loss of the whole batch, so
    the mean over workers that DDP takes afterwards is the exact gradient of that loss. Workers may
    hold different numbers of rows. Without a process group, `x` itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    mine = torch.tensor([len(x)], device=x.device)
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine)
    rows = [int(size) for size in sizes]
    if x.requires_grad:
        gathered: Tensor = _Gather.apply(x, rows)  # type: ignore[no-untyped-call]
        return gathered
    return _collect(x, rows)


def _collect(x: Tensor, rows: list[int]) -> Tensor:
    # Collectives want equal shapes: the shorter parts travel padded.
    padding = [0, 0] * (x.ndim - 1) + [0, max(rows) - len(x)]
    padded = F.pad(x, padding).contiguous()
    parts = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: list[int]) -> Tensor:
        ctx.rows = rows
        return _collect(x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = sum(ctx.rows[: dist.get_rank()])
        return total[first : first + ctx.rows[dist.get_rank()]], None
