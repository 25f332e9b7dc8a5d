"""Tensors to a device and numbers back, without waiting for it.

Flows in: tensors on the CPU, or the numbers of a step on the device. Flows out: the tensors on the
device, the numbers as floats when they are asked for. A GPU that waits for the CPU inside a step
computes nothing meanwhile. On a CPU both are there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Nest = TypeVar("Nest")  # of lists, tuples and dataclasses, with tensors in it


def mapped(nest: Nest, do: Callable[[Tensor], Tensor]) -> Nest:
    """`do` applied to each tensor in `nest`."""
    made: Any = nest
    if isinstance(nest, Tensor):
        made = do(nest)
    elif isinstance(nest, list | tuple):
        made = type(nest)(mapped(one, do) for one in nest)
    elif is_dataclass(nest) and not isinstance(nest, type):
        own = {field.name: mapped(getattr(nest, field.name), do) for field in fields(nest)}
        made = replace(nest, **own)
    return cast("Nest", made)


def send(nest: Nest, device: torch.device | str) -> Nest:
    """The tensors on `device`. A GPU copies them from pinned memory while the CPU goes on."""
    pinned = torch.device(device).type == "cuda"

    def one(tensor: Tensor) -> Tensor:
        if pinned and not tensor.is_cuda:
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    return mapped(nest, one)


class Numbers:
    """The numbers of a step of N runs, on their way to the CPU: only `row` waits for them."""

    def __init__(self, names: Iterable[str], values: Tensor) -> None:
        """`values` (N, K) for the K `names`. They are copied, so they may be overwritten
        afterwards."""
        self.names, self.arrival = list(names), None
        if values.is_cuda:
            self.values = torch.empty_like(values, device="cpu", pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.arrival = torch.cuda.current_stream(values.device).record_event()
        else:
            self.values = values.clone()

    def row(self, run: int = 0) -> dict[str, float]:
        """One run's numbers, by name."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return dict(zip(self.names, self.values[run].tolist(), strict=True))
