"""One training step: the seed of its dropout, its learning rate, loss, gradient and update.

Flows in: an adapter, a batch, the optimizer. Flows out: the step's numbers, the parameters changed.
All of a step is a function of the run's configuration and of the step's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainables.adapters.base import Adapter
from trainables.config import OptimConfig, TrainConfig, in_epoch
from trainables.data.batches import Batch
from trainables.data.transfer import Numbers
from trainables.distributed import Worker, average
from trainables.hardware import autocast
from trainables.losses.schedules import coop_lr, lr_factor
from trainables.training.sampler import generator


def make_optimizer(
    optim: OptimConfig, trained: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer, with decay for matrices and prompts alone: decay pulls to 0, and 0 is no
    natural place for a temperature or a bias."""
    decay = optim.weight_decay
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if optim.kind == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, lr=optim.lr, fused=True)


def learning_rate(config: TrainConfig, step: int, epochs: int, steps_per_epoch: int) -> float:
    """The learning rate of step `step`, from 0, of a run of so many epochs.

    >>> from trainables.adapters.registry import make_config
    >>> config = make_config("projection", {"optim.lr": 1e-3, "optim.schedule": "linear"})
    >>> learning_rate(config, step=10, epochs=2, steps_per_epoch=10)
    0.0005
    """
    epoch = step // steps_per_epoch
    optim = in_epoch(config, 1 + epoch).optim if config.changes else config.optim
    if optim.schedule == "coop":
        return coop_lr(optim.lr, epoch, epochs)
    return optim.lr * lr_factor(optim.schedule, optim.warmup, step, epochs * steps_per_epoch)


def seed_dropout(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Make dropout, too, a function of the step, and of the worker."""
    own = generator(seed, 2, step, rank).initial_seed()
    torch.default_generator.manual_seed(own)  # `torch.manual_seed` looks at every kind of device
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(own)


def train_step(
    adapter: Adapter[Any],
    batch: Batch,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    lr: float,
    worker: Worker,
) -> Numbers:
    """Change the parameters by the gradient of one batch. The result is the numbers of its loss,
    which may still be on their way from the device."""
    config = adapter.train_config
    for group in optimizer.param_groups:
        group["lr"] = lr
    adapter.objective.settle()
    with autocast(config.precision, adapter.backbone.device):
        loss, numbers = adapter(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    found = torch.stack(list(numbers.values()))
    if worker.world > 1:
        found = average(list(trained.values()), found)
    if config.optim.clip_norm:
        nn.utils.clip_grad_norm_(trained.values(), config.optim.clip_norm)
    optimizer.step()
    return Numbers(numbers, found[None])
