"""What changes during a run: the learning rate and the temperature, as pure functions of the
step."""

from __future__ import annotations

import math

from torch import Tensor


def lr_factor(schedule: str, warmup: float, step: int, total: int) -> float:
    """The factor of `optim.lr` at step `step` (from 0) of `total`, in (0, 1].

    Over the first `warmup` share of the steps the factor climbs in a line; the first step is
    already above 0. Then it stays (`constant`), or falls towards 0 in a line (`linear`) or along
    half a cosine (`cosine`). No step has a factor of 0.

    >>> [round(lr_factor("linear", 0.25, step, 8), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 0.83, 0.67, 0.5, 0.33, 0.17]
    """
    climbing = math.ceil(warmup * total)
    if step < climbing:
        return (step + 1) / climbing
    done = (step - climbing) / max(1, total - climbing)  # in [0, 1)
    return {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }[schedule]


def coop_lr(lr: float, epoch: int, epochs: int) -> float:
    """CoOp's learning rate in epoch `epoch` (from 0) of `epochs`, which many papers took over.

    The first epoch has 1e-5. Then comes half a cosine that is one epoch behind, so the rate never
    reaches 0.

    >>> [round(coop_lr(0.002, epoch, 4), 5) for epoch in range(4)]
    [1e-05, 0.002, 0.00171, 0.001]
    """
    if epoch == 0:
        return 1e-5
    return 0.5 * lr * (1.0 + math.cos(math.pi * (epoch - 1) / epochs))


def cosine_scale(start: Tensor, final: Tensor, progress: Tensor) -> Tensor:
    """The `cosine` temperature: from `start` to `final` along half a cosine.

    >>> import torch
    >>> round(cosine_scale(*torch.tensor([10.0, 90.0, 0.5])).item(), 2)
    50.0
    """
    share = 0.5 * (1.0 + (math.pi * progress).cos())
    return final + (start - final) * share.to(start.dtype)


def adapted(
    log_scale: Tensor, entropy: Tensor, rate: Tensor, target: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The `adaptive` temperature's rule, one step of it; `low` and `high` bound log tau.

        log tau  <-  clamp(log tau + rate * (entropy - target), low, high)

    `entropy` is that of the batch's softmax rows as a share of its maximum log(K): 1 where the
    model cannot tell the candidates apart, 0 where it is certain. Too uncertain, tau rises and
    sharpens the softmax; too certain, it falls, and more of the negatives get a gradient again.
    """
    return (log_scale + rate * (entropy - target)).clamp(low, high)
