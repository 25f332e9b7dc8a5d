"""Hidden states kept on disk, filled as they are asked for, shared by all trials of all searches.

Flows in: row numbers, and a function that computes the rows that are not kept yet. Flows out: their
states, to the bit as they were computed. A slot counts only if its checksum fits, so other writers
of the same file, or a crash in the middle of a write, do no harm.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CRC = 4  # bytes of a checksum


class LowerStates:
    """Rows of fp32 `shape`, in one slot each: the first ones, as many as `budget` bytes hold.

    Without a `path`, or where the file cannot be written (a full disk, a read-only store), all rows
    are computed each time; `notice` then says why.
    """

    def __init__(self, path: Path | None, rows: int, shape: tuple[int, ...], budget: int) -> None:
        self.shape, self.size = shape, 4 * math.prod(shape)
        self.slots = min(rows, budget // (self.size + CRC)) if path is not None else 0
        self.notice: str | None = None
        self.file: int | None = None
        if path is not None and self.slots:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                if os.fstat(self.file).st_size == 0:  # sparse: says what it may take, takes nothing
                    os.ftruncate(self.file, self.slots * (self.size + CRC))
            except OSError as error:
                self._stop(f"hidden states cannot be kept in `{path}` ({error.strerror})")

    def __del__(self) -> None:
        if self.file is not None:
            os.close(self.file)

    def __call__(self, rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The states of `rows` (B,): (B, *shape) on the CPU. `compute` gets those not kept yet."""
        states = torch.empty(len(rows), *self.shape)
        missing = [n for n, row in enumerate(rows.tolist()) if not self._read(row, states[n])]
        if missing:
            fresh = compute(rows[missing]).detach().float().cpu()
            states[missing] = fresh
            for n, state in zip(missing, fresh, strict=True):
                self._write(int(rows[n]), state)
        return states

    def _read(self, row: int, into: Tensor) -> bool:
        """Fill `into` with a kept row, if it is there and whole."""
        if self.file is None or row >= self.slots:
            return False
        data = os.pread(self.file, self.size + CRC, row * (self.size + CRC))
        if len(data) < self.size + CRC or _crc(data[CRC:]) != data[:CRC]:
            return False
        into.copy_(
            torch.from_numpy(np.frombuffer(data, np.float32, offset=CRC).copy()).view(self.shape)
        )
        return True

    def _write(self, row: int, state: Tensor) -> None:
        if self.file is None or row >= self.slots:
            return
        data = state.contiguous().numpy().tobytes()
        try:  # not through a mapping: there a full disk is a signal that kills
            os.pwrite(self.file, _crc(data) + data, row * (self.size + CRC))
        except OSError as error:
            self._stop(f"hidden states are no longer kept ({error.strerror})")

    def _stop(self, notice: str) -> None:
        if self.file is not None:
            os.close(self.file)
        self.file, self.notice = None, notice + ": they are computed each time."
        print(f"warning: {self.notice}", file=sys.stderr, flush=True)


def reading_pays(
    folder: Path,
    rows: Tensor,
    compute: Callable[[Tensor], Tensor],
    clock: Callable[[], float] | None = None,
) -> bool:
    """Whether the device has the states of `rows` (B,) sooner by reading them from `folder` than by
    computing them again. Each is timed three times, in turns, and the least counts.

    A GPU that waits for a disk, checksums and copies computes nothing meanwhile; where the GPU is
    slow and the tower large, reading may still be faster. False where `folder` cannot be written.
    """
    fresh = compute(rows)  # what a device does but once is over
    clock = clock or partial(_when_done, fresh.device)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            budget = len(rows) * (4 * fresh[0].numel() + CRC)
            kept = LowerStates(Path(place, "states"), len(rows), fresh.shape[1:], budget)
            every = torch.arange(len(rows))
            kept(every, lambda some: fresh[some.to(fresh.device)])
            read = made = math.inf
            for _ in range(3):
                began = clock()
                kept(every, lambda some: compute(rows[some])).to(fresh.device)
                between = clock()
                compute(rows)
                read, made = min(read, between - began), min(made, clock() - between)
    except OSError:
        return False
    return read < made


def _when_done(device: torch.device) -> float:
    """The time at which the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _crc(data: bytes) -> bytes:
    """A checksum that is never all zeros: an unwritten slot is."""
    return (zlib.crc32(data) or 1).to_bytes(CRC, "little")
