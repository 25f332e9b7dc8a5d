"""What workers that train one adapter together share: a batch's rows, gradients, and decisions.

Flows in: each worker's part. Flows out: the same for all, whatever befell one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Function
from torch.nn import functional as F

from trainables.errors import ConfigError
from trainables.hardware import card, default_device

# How long a worker waits in a step for the others: as long as one of them may write a checkpoint.
STEP_SECONDS = 600
# How long it waits for their word: a pass over val, or the next trial. (In ms it fits 32 bits.)
PATIENCE = timedelta(weeks=3)


@dataclass(frozen=True)
class Worker:
    """This process's place among those that train one adapter together.

    The workers' messages go through `control`, a group of its own with a long limit, as a worker
    may be busy for long. (Ray Train watches whether it is alive.) None: the default group.
    """

    rank: int = 0
    world: int = 1
    control: dist.ProcessGroup | None = None

    def tell(self, value: Any) -> Any:
        """Worker 0's `value`, for all."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, group=self.control)
        return values[0]

    def hear(self, value: Any) -> list[Any]:
        """The `value` of each worker, for all."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values


ALONE = Worker()


def join() -> Worker:
    """This process's place in the process group, if there is one; each worker calls it once, first.

    Raises `ConfigError`, for all alike, where two workers hold one card: NCCL refuses that, but
    late, and without saying who. Any other obstacle to computing together shows here too.
    """
    if not _together():
        return ALONE
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    worker = Worker(dist.get_rank(), dist.get_world_size(), control)
    cards = worker.hear(card())
    for rank, name in enumerate(cards):
        if name is not None and name in cards[:rank]:
            raise ConfigError(
                f"each worker of a trial must have a card of its own, got one for ranks "
                f"{cards.index(name)} and {rank}: `{name}`."
            )
    dist.all_reduce(torch.zeros((), device=default_device()))
    return worker


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def shared(x: Tensor) -> Tensor:
    """The mean of `x` over workers, the same bits for all; it carries no gradient."""
    if not _together():
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def average(parameters: Sequence[nn.Parameter], numbers: Tensor) -> Tensor:
    """Replace each gradient by its mean over workers; the result is the mean of `numbers`.

    All of it travels in one collective after the backward pass, so the workers' collectives have
    one order whatever each batch used. A gradient that one worker lacks counts as 0; one that all
    workers lack stays absent, as with a single worker. A number that is not finite for one worker
    is so for all.
    """
    absent = [n for n, parameter in enumerate(parameters) if parameter.grad is None]
    used = torch.ones(len(parameters), device=numbers.device)
    for n in absent:
        parameters[n].grad = torch.zeros_like(parameters[n])
        used[n] = 0
    grads = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    flat = shared(torch.cat([*grads, used, numbers]))
    *means, used, numbers = flat.split([*map(len, grads), len(used), len(numbers)])
    for parameter, mean in zip(parameters, means, strict=True):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype)
    for n in absent:
        if not used[n]:
            parameters[n].grad = None
    return numbers


def same_start(tensors: Sequence[Tensor]) -> None:
    """Give all workers the `tensors` of worker 0: unlike machines round differently."""
    for tensor in tensors:
        dist.broadcast(tensor, 0)


def start_together(worker: Worker, step: int, tensors: Sequence[Tensor]) -> None:
    """Raise unless all workers stand at one step; give them one adapter. No worker writes before
    all have read."""
    steps = worker.hear(step)
    if len(set(steps)) > 1:  # a network file system may show a node what was there before
        raise RuntimeError(f"the workers read checkpoints of different steps: {steps}.")
    same_start(tensors)


def gather(x: Tensor) -> Tensor:
    """The rows of all workers in rank order: (n, ...) here, (sum of n, ...) everywhere.

    Backward sums the gradient over workers. Each worker computes the loss of the whole batch, so
    `average` gives the exact gradient of that loss. Workers may hold different numbers of rows.
    Without a process group, `x` itself.
    """
    if not _together():
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
