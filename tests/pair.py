"""Processes of a test: forked from one that has imported all, and two gloo workers among them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

SECONDS = 600  # what both need at most, imports on a busy machine included; else they hang


def forking() -> ForkServerContext:
    """To start processes in tenths of a second, where imports would take each of them five."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainables.training.loop", "trainables.models.backbone"])
    return context


def pair(work: Callable[[int, Path], None], folder: Path, limit: int = 60) -> None:
    """Let ranks 0 and 1 do `work`, where a collective waits for at most `limit` seconds."""
    forking()
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
