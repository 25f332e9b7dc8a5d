"""Two gloo workers on this machine, for tests of what several do together."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

SECONDS = 120  # what both need at most, imports on a busy machine included; else they hang


def pair(work: Callable[[int, Path], None], folder: Path, limit: int = 60) -> None:
    """Let ranks 0 and 1 do `work`, where a collective waits for at most `limit` seconds."""
    # Both are forked from one process that has imported the test's module once.
    mp.set_forkserver_preload([work.__module__])
    both = mp.start_processes(  # type: ignore[attr-defined,no-untyped-call]
        _enter, (work, folder, limit), nprocs=2, start_method="forkserver", join=False
    )
    end = time.monotonic() + SECONDS
    while not both.join(timeout=1):
        if time.monotonic() > end:
            for process in both.processes:
                process.kill()
            pytest.fail("one worker waits for the other.")


def _enter(rank: int, work: Callable[[int, Path], None], folder: Path, limit: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / f'rendezvous-{work.__name__}'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=limit),
    )
    work(rank, folder)
    dist.destroy_process_group()
