"""Whose failure an error is, by what torch, CUDA and Linux say."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from trainables.errors import CheckpointError, ConfigError, DataError
from trainables.faults import context_is_dead, is_machines_failure
from trainables.files import read_json, write_bytes
from trainables.training.integrity import verify
from trainables.training.loop import Diverged
from trainables.trials.crew import is_own_failure

HINTS = (
    "\nSearch for `cudaError' in https://docs.nvidia.com/cuda for more information.\nCUDA kernel "
    "errors might be asynchronously reported at some other API call, so the stacktrace below might "
    "be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)
# What the CUDA runtime calls the errors after which a process can only end.
DEAD = [
    *("device-side assert triggered", "an illegal memory access was encountered"),
    *("unspecified launch failure", "an illegal instruction was encountered"),
    *("misaligned address", "invalid program counter", "hardware stack error"),
    *("the launch timed out and was terminated", "context is destroyed", "unknown error"),
    *("uncorrectable ECC error encountered",),
    *("uncorrectable NVLink error detected during the execution",),
    *("operation not supported on global/shared address space",),
    *("Invalid access of peer GPU memory over nvlink or a hardware error",),
]
MEMORY: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
    torch.AcceleratorError("CUDA error: out of memory" + HINTS),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"
    ),
    MemoryError(),
]


def full(path: Path, monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> DataError:
    """What a write says on a disk that answers `code`."""

    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(DataError) as caught:
            write_bytes(path, b"bytes")
    return caught.value


@pytest.mark.parametrize("words", DEAD)
def test_a_fault_of_the_device_ends_the_worker(words: str) -> None:
    error = torch.AcceleratorError(f"CUDA error: {words}{HINTS}")
    assert context_is_dead(error)
    assert is_machines_failure(error)
    assert not is_own_failure(error)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA driver error: unknown error",
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error, NCCL version 2.27.5",
        "Triton Error [CUDA]: an illegal memory access was encountered",
    ],
)
def test_a_library_that_fails_on_the_device_ends_the_worker(words: str) -> None:
    assert context_is_dead(RuntimeError(words))


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_too_little_memory_kills_no_context(error: BaseException) -> None:
    assert not context_is_dead(error)
    assert not is_machines_failure(error)


def test_a_dead_context_shows_when_asked_whatever_the_error_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[str | None] = [None, "CUDA error: unspecified launch failure"]

    def synchronize() -> None:
        if (answer := answers.pop(0)) is not None:
            raise torch.AcceleratorError(answer)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    error = RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")
    assert not context_is_dead(error)
    assert context_is_dead(error)


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EDQUOT, errno.EMFILE, errno.ENOTCONN]
)
def test_what_the_file_system_did_is_not_the_runs_doing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = full(tmp_path / "file", monkeypatch, code)
    assert is_machines_failure(error)
    assert not is_own_failure(error)
    assert is_machines_failure(OSError(code, os.strerror(code)))
    assert is_machines_failure(TimeoutError())


def test_what_would_happen_again_is_the_runs_own(tmp_path: Path) -> None:
    with pytest.raises(DataError) as missing:
        read_json(tmp_path / "nothing.json")
    with pytest.raises(CheckpointError) as torn:
        verify(tmp_path)
    own = (missing.value, torn.value, Diverged("the loss became nan."), ConfigError("no."))
    assert all(map(is_own_failure, own))
    others = (OSError("x is not a folder with a model."), ZeroDivisionError(), KeyError("x"))
    assert not any(map(is_machines_failure, (*own, *others)))
