"""A GPU's memory-efficient attention, on a CPU: what it refuses, and the path of calls to it.

PyTorch's kernel takes masks as a bias for each row and head, laid out so that it can be read 16
bytes at a time (`kernel_forward.h`, `check_supported`; the shapes: `attention.cu`). Here the same
operation refuses the same, and else computes the formula. Attention reaches it as it does on a GPU:
`attention.cpp` makes a bias of the mask, pads and expands it, and `vmap` applies its own rule to
the operation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

OPERATION = "_scaled_dot_product_efficient_attention"
PADDED = 8  # to a multiple of so many keys


def refuse(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, *others: Tensor
) -> None:
    """What the kernel refuses, with its words."""
    given = (queries, keys, values, *others)
    rows, heads, length, _ = queries.shape
    if any(tensor.dim() != 4 for tensor in given):
        raise RuntimeError("rank: expected 4 dimensions")
    if any(tensor.shape[:2] != (rows, heads) for tensor in given):
        raise RuntimeError("query, key, value: wrong shape (batch or heads)")
    if keys.shape[2] != values.shape[2] or keys.shape[3] != queries.shape[3]:
        raise RuntimeError("key, value: wrong shape (length or width)")
    if any(tensor.stride(3) != 1 or tensor.dtype != queries.dtype for tensor in given):
        raise RuntimeError("query, key, value: last dimension must be contiguous, of one dtype")
    if bias is None:
        return
    if bias.dtype != queries.dtype:
        raise RuntimeError("invalid dtype for bias - should match query's dtype")
    wanted = (rows, heads, length, keys.shape[2])
    for name, own, other in zip(
        ("batch", "head", "seqlenQ", "seqlenKV"), bias.shape, wanted, strict=True
    ):
        if own != other:
            raise RuntimeError(f"attn_bias: wrong shape ({name} dimension)")
    if bias.stride(3) != 1:
        raise RuntimeError("attn_bias: wrong alignment (last dimension must be contiguous)")
    step = 16 // bias.element_size()
    if any(size > 1 and one % step for size, one in zip(wanted[:3], bias.stride(), strict=False)):
        raise RuntimeError("attn_bias is not correctly aligned")


def _weights(queries: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    scores = queries.float() @ keys.float().mT * scale
    return torch.softmax(scores if bias is None else scores + bias.float(), -1)


def forward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    assert not dropout_p
    assert not is_causal
    refuse(queries, keys, values, bias)
    weights = _weights(queries, keys, bias, scale or 1 / math.sqrt(queries.shape[-1]))
    unused = torch.zeros((), dtype=torch.int64)
    out = (weights @ values.float()).to(queries.dtype)
    return out, queries.new_zeros(queries.shape[:3], dtype=torch.float32), unused, unused.clone()


def backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *_: Any,
    scale: float | None = None,
) -> tuple[Tensor | None, ...]:
    refuse(queries, keys, values, bias, out)
    scale = scale or 1 / math.sqrt(queries.shape[-1])
    weights, grad = _weights(queries, keys, bias, scale), grad.float()
    inner = grad @ values.float().mT
    scores = weights * (inner - (inner * weights).sum(-1, keepdim=True)) * scale
    found = (scores @ keys.float(), scores.mT @ queries.float(), weights.mT @ grad)
    return *(one.to(queries.dtype) for one in found), None


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` as it is composed where the kernel is at hand."""
    assert not enable_gqa
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.tensor(-math.inf, dtype=queries.dtype))
        if mask.stride(-1) != 1 or any(step % PADDED for step in mask.stride()[:-1]):
            width = mask.shape[-1]
            mask = F.pad(mask, (0, PADDED - width % PADDED))[..., :width]
        mask = mask.expand(*queries.shape[:3], keys.shape[2])
    kernel = getattr(torch.ops.aten, OPERATION)
    found: Tensor = kernel(queries, keys, values, mask, True, dropout_p, is_causal, scale=scale)[0]
    return found


@contextmanager
def gpu_attention() -> Iterator[list[torch.Size]]:
    """All attention on the CPU by that path; the shapes of the queries that the kernel got."""
    calls: list[torch.Size] = []

    def counted(queries: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        calls.append(queries.shape)
        return forward(queries, *args, **kwargs)

    with warnings.catch_warnings(), torch.library._scoped_library("aten", "IMPL") as library:
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        # Outside of `vmap`, and in it.
        for key in ("CompositeImplicitAutograd", "FuncTorchVmapMode"):
            library.impl("scaled_dot_product_attention", attention, key, allow_override=True)
        library.impl(OPERATION, counted, "CPU")
        library.impl(f"{OPERATION}_backward", backward, "CPU")
        yield calls
