"""What the machine can do: device, and the precision that pays on it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

# Without these, bf16 on a CPU is emulated: measured 42 times slower than fp32.
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def card() -> str | None:
    """The name, unlike any other's, of the GPU (or the part of one) that this process computes on;
    None: it has none."""
    if not torch.cuda.is_available():
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def bf16_pays(device: torch.device | str, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether bf16 autocast is faster than fp32 on `device`."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu" or not cpuinfo.is_file():
        return False
    flags = next((x for x in cpuinfo.read_text().splitlines() if x.startswith("flags")), "")
    return bool(BF16_FLAGS & set(flags.split()))


def autocast(
    precision: str, device: torch.device | str
) -> contextlib.AbstractContextManager[object]:
    """The autocast context of `precision` ("auto", "fp32", "bf16") on `device`."""
    if precision == "bf16" or (precision == "auto" and bf16_pays(device)):
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
