"""What the machine can do: device, and the precision that pays on it.

Flows in: a precision as it was asked for. Flows out: the precision on a device, and the contexts in
which tensors are computed: `autocast` for towers and heads, `full` for scores.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.errors import ConfigError

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
Resolved: TypeAlias = Literal["fp32", "bf16"]

# Without these, bf16 on a CPU is emulated: measured 42 times slower than fp32.
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}
# Only a CPU's matrix unit is faster in bf16: with AVX-512's alone, steps of captioners and prompts
# were measured 1.2 to 1.9 times as long as in fp32, whatever the model's size.
MATRIX_FLAG = "amx_bf16"
# What multiplies int8 and adds in 32 bits, in one instruction.
INT8_FLAGS = {"amx_int8", "avx512_vnni", "avx_vnni"}
CPUINFO = Path("/proc/cpuinfo")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def recomputes(device: torch.device) -> bool:
    """Whether computing again may take less time than reading the result, as on a GPU."""
    return device.type == "cuda"


def card() -> str | None:
    """The name, unlike any other's, of the GPU (or the part of one) that this process computes on;
    None: it has none."""
    if not torch.cuda.is_available():
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def has_bf16(device: torch.device | str) -> bool:
    """Whether `device` computes bf16 itself, without emulating it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.device(device).type == "cpu" and bool(BF16_FLAGS & _cpu_flags(CPUINFO))


def bf16_pays(device: torch.device | str) -> bool:
    """Whether bf16 autocast is faster than fp32 on `device`."""
    slow = torch.device(device).type == "cpu" and MATRIX_FLAG not in _cpu_flags(CPUINFO)
    return has_bf16(device) and not slow


def has_int8() -> bool:
    """Whether the CPU has instructions for products of int8."""
    return bool(INT8_FLAGS & _cpu_flags(CPUINFO))


@functools.cache
def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def resolved(precision: Precision, device: torch.device | str) -> Resolved:
    """The precision of training, val and test on `device`."""
    if precision == "auto":
        return "bf16" if bf16_pays(device) else "fp32"
    return precision


def of_store(precision: Precision, device: torch.device | str) -> Resolved:
    """The precision of a feature store made on `device`; on a CPU, bf16 only if asked for."""
    if precision == "auto" and torch.device(device).type == "cpu":
        return "fp32"
    return resolved(precision, device)


def check_precision(precision: Precision, device: torch.device | str, name: str) -> None:
    """Raise `ConfigError` where `device` would have to emulate `precision`; `name` is the field or
    flag that asked."""
    if precision == "bf16" and not has_bf16(device):
        raise ConfigError(f"`{name}` must be auto or fp32 here: {_no_bf16(device)}, got 'bf16'.")


def _no_bf16(device: torch.device | str) -> str:
    if torch.device(device).type == "cuda":
        return "this GPU has no bf16 of its own"
    return f"this CPU has neither {' nor '.join(sorted(BF16_FLAGS))}, and emulates bf16"


@contextmanager
def autocast(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Compute in `precision` on `device`, whatever the context around it says.

    On a GPU, what is left in fp32 is multiplied as TF32 (10 bits of a mantissa) unless fp32 was
    asked for by name. Where bf16 is emulated, as when a GPU's run is measured on a CPU, it is told
    once and the numbers are the same.
    """
    kind, bf16 = torch.device(device).type, resolved(precision, device) == "bf16"
    if bf16 and not has_bf16(device):
        _tell_emulated(kind)
    with torch.autocast(kind, torch.bfloat16, enabled=bf16), _attended(kind, bf16):
        if kind != "cuda":
            yield
        else:
            with _multiplied("ieee" if precision == "fp32" else "tf32"):
                yield


def _attended(kind: str, bf16: bool) -> AbstractContextManager[None]:
    """The kernels of attention. On a CPU, the backward of the fused one takes 3 to 9 times as long
    in bf16 as that of the plain one, whatever the heads' width."""
    if kind == "cpu" and bf16 and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


@contextmanager
def full(device: torch.device | str) -> Iterator[None]:
    """Compute in fp32 to its last bit, whatever the context around it says: tau multiplies
    similarities by 100, and bf16 keeps 3 digits of them."""
    with torch.autocast(torch.device(device).type, enabled=False):
        if torch.backends.cuda.matmul.fp32_precision != "tf32":
            yield
        else:
            with _multiplied("ieee"):
                yield


@contextmanager
def _multiplied(how: Literal["ieee", "tf32"]) -> Iterator[None]:
    """How GPUs multiply fp32 numbers, matrices and convolutions."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = how
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.fp32_precision = was


@functools.cache
def _tell_emulated(kind: str) -> None:
    print(
        f"warning: what was made in bf16 is computed in bf16 here too, slowly: {_no_bf16(kind)}",
        file=sys.stderr,
    )
