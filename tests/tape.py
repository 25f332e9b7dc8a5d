"""What a CUDA graph does, on a CPU: operations are recorded once, and replayed in the same memory.

A replay runs no Python of what was recorded and reads no number but from that memory, so whatever a
step decided in Python is frozen, as it is in a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = (
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.repeat_interleave.Tensor),
)  # and an index that is a mask


def check(func: Any, args: Any) -> None:
    """Refuse what makes the CPU wait for a GPU."""
    masked = func in (aten.index.Tensor, aten.index_put_.default) and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )
    if func in WAITS or masked:
        raise RuntimeError(f"{func} makes the CPU wait for the device")


class NoWait(TorchDispatchMode):
    """Where nothing may wait. Lists of integers may be made: the CPU's own, as plans are."""

    def __enter__(self) -> Any:
        self.lists = _NoLists()
        self.lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.lists.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check(func, args)
        return func(*args, **(kwargs or {}))


class _NoLists(TorchFunctionMode):
    """What `dispatch` does not see on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu) and args[0].is_floating_point():
            raise RuntimeError(f"{func} makes the CPU wait for the device")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Every operation below autograd and `vmap`, with what it was given and what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []  # what was written to, as it was

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check(func, args)
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write:
                self.before += [(tensor, tensor.clone()) for tensor in tensors(value)]
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def undo(self) -> None:
        """A graph's recording computes nothing."""
        for tensor, value in reversed(self.before):
            tensor.detach().copy_(value)
        self.before = []

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            fresh = func(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(fresh), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.detach().copy_(new)


def tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


class Recorder:
    """A `Record` that counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        tape = Tape()
        state = torch.get_rng_state()
        with tape:
            result = work()
        torch.set_rng_state(state)
        tape.undo()

        def replay() -> Tensor:
            self.replayed += 1
            tape.replay()
            return result

        return replay
