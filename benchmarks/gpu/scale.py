"""On what, and how large, a part measures: a card and CLIP's shapes, or a CPU and tiny ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scale:
    """Where the work is done, and a clock that waits for it."""

    device: torch.device

    @property
    def small(self) -> bool:
        """On a CPU, parts only run to their end."""
        return self.device.type == "cpu"

    def wait(self) -> None:
        if not self.small:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """How long `work` takes, to the end of what it started on the device."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started
