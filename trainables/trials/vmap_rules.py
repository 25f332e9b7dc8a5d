"""Two operations that `torch.vmap` is to batch in another way than by its own rules.

Flows in: a call of torch in which some tensors stand for all runs. Flows out: the same values, in
an order of axes that is faster, or that a GPU's kernels take.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Together(TorchFunctionMode):
    """The two rules, inside `vmap`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[0].ndim == 2 and is_batchedtensor(args[1]):
            return _linear(*args, **kwargs)
        masked = func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is not None
        if masked and any(is_batchedtensor(tensor) for tensor in args):
            return _Attention.apply(*args, kwargs)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T as (W x^T)^T: then one product has the matrices of all runs beside the x that they
    share, and the gradients of W lie as W does."""
    out = (weight @ inputs.mT).mT
    return out if bias is None else out + bias


class _Attention(torch.autograd.Function):
    """Masked attention with the runs as further heads: the mask is the same for all heads, and so
    for all runs. By `vmap`'s own rule the runs become further rows, for which the mask is not
    expanded; that breaks a rule of a GPU's memory-efficient kernel."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        raise NotImplementedError("attention outside of `vmap` needs no rule.")

    @staticmethod
    def setup_context(*_: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        """Queries, keys, values: (n, h, q or k, d) a run. The other arguments are the same for all
        runs."""
        *tensors, how = args
        heads = [
            (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0))
            .transpose(0, 1)
            .flatten(1, 2)  # (n, N h, q or k, d)
            for x, dim in zip(tensors, dims[:3], strict=True)
        ]
        out = F.scaled_dot_product_attention(*heads, **how)
        return out.unflatten(1, (info.batch_size, -1)), 1
