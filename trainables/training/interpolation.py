"""How much of what was learned counts, after training: a knob on a trained adapter.

Flows in: a trained adapter, the tensors that its training began with, and a share. Flows out: the
same adapter, turned: 0 is the start of training, 1 its end, above 1 further the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainables.adapters.base import Adapter
from trainables.adapters.registry import build
from trainables.config import TrainConfig, check
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import live_tensors, trained_tensors


def start_of(
    config: TrainConfig, backbone: Backbone, train: SplitFeatures | None = None
) -> dict[str, Tensor]:
    """The tensors with which training began: a function of the config and, for some methods, of the
    training data."""
    return trained_tensors(build(config, backbone, train))


def check_share(share: float) -> None:
    check(math.isfinite(share) and share >= 0, "share", "a number of at least 0", share)


@contextmanager
def at(adapter: Adapter[Any], share: float, start: Mapping[str, Tensor]) -> Iterator[Adapter[Any]]:
    """`adapter` at `share` of what it learned since `start`, while the block runs, by the method's
    own `turned`. A share of 1 leaves every bit as it is."""
    check_share(share)
    tensors = live_tensors(adapter)
    learned = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    if share != 1:
        here = {name: tensor.to(learned[name].device) for name, tensor in start.items()}
        _put(tensors, adapter.turned(here, learned, share))
    try:
        yield adapter
    finally:
        _put(tensors, learned)


@torch.no_grad()
def _put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
