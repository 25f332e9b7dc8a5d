"""Memory of the device: a worker's share of it, and the sentence for too little.

Flows in: errors of torch. Flows out: whether they are about memory, and a sentence with numbers.
"""

from __future__ import annotations

import gc

import torch

WORDS = (
    "allocate memory",  # how torch says it on a CPU
    "out of memory",  # the driver, where torch does not ask for the memory itself
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in WORDS)


def shortage(error: Exception, share: float) -> str:
    """How much memory was asked for, as torch says it, and how much there was. `share`: of a card,
    a worker's."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not torch.cuda.is_available():
        return said
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    return (
        f"{said} This worker may use {share * total:.1f} GiB of the card; {free:.1f} of "
        f"{total:.1f} GiB are free."
    )


def claim(share: float) -> None:
    """Use no more than this share of the card, which others use too."""
    if share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def give_back() -> None:
    """Give memory that no tensor holds back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
