"""Whose failure an error is: the run's own, which it would meet again, or the machine's.

Flows in: an error. Flows out: whether another worker should go on with the run, or a sentence. A
failure of the machine (its GPU died, its disk was full, its file system went away) says nothing
about the run.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import torch

from trainables.errors import CliptuneError

# What an `OSError` says of a path, and so of who gave it; the rest it says of the machine.
OF_A_PATH = {
    *(None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST),
    *(errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG),
}
# What it says of a disk or a file system, which will say it to every run alike.
OF_A_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS),
    *(errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
}
# How torch, and the libraries that it calls, begin what they say of a GPU.
OF_A_GPU = re.compile(r"\b(CUDA( driver)?|cuDNN|cusolver|cuFFT|NCCL|Triton) error\b", re.IGNORECASE)


def is_machines_failure(error: BaseException) -> bool:
    """Whether `error`, or its cause, is a failure of the machine: elsewhere, or later, the run may
    go well.

    Too little memory is no such failure: how much a run needs depends on the run.
    """
    return context_is_dead(error) or any(map(_of_the_system, _causes(error)))


def disk_failure(error: BaseException) -> str:
    """What `error`, or its cause, says of a disk that is full or gone, for which no other worker
    would do better; empty for other errors."""
    of_disk = (one for one in _causes(error) if isinstance(one, OSError) and one.errno in OF_A_DISK)
    found = next(of_disk, None)
    if found is None:
        return ""
    words = str(error) if isinstance(error, CliptuneError) else str(found)
    return " ".join(words.split())


def context_is_dead(error: BaseException) -> bool:
    """Whether this process's GPU can compute nothing any more after `error`, so that the process
    must end.

    After a fault in a kernel (an assertion, an illegal address), in memory or on a link, CUDA
    answers every later call of the process with an error. After a few errors (a launch that was
    refused) the device would still work, but a new worker costs only seconds.
    """
    if any(map(_of_a_gpu, _causes(error))):
        return True
    if not torch.cuda.is_initialized():
        return False
    try:  # what was said need not be what the device has
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _of_a_gpu(error: BaseException) -> bool:
    if re.search("out of memory|ALLOC_FAILED", str(error)):
        return False
    said = isinstance(error, RuntimeError) and OF_A_GPU.search(str(error)) is not None
    return said or isinstance(error, torch.AcceleratorError)


def _of_the_system(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno not in OF_A_PATH
