"""Attention of ragged rows that share nodes: which node attends to which, in few padded calls.

Flows in: the node at each position of each row, on the CPU. Flows out: `Pattern`s, which travel to
the device and are spread over heads there: an `Attention` from packed nodes (T, d) to packed nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Ints: TypeAlias = NDArray[np.int32]
LEVELS = (1, 4, 16, 64)  # own nodes of the rows that are padded together on a CPU


@dataclass(frozen=True)
class Group:
    """Rows that attend in one padded call: the queries are the nodes that a row owns, the keys all
    nodes on its path from the root. Numbers point into (nodes x heads) vectors of one head each."""

    queries: Tensor  # (n, h, q) int32
    keys: Tensor  # (n, h, k) int32
    mask: Tensor  # (n, 1, q, k) bool, true where a query may look


@dataclass(frozen=True)
class Attention:
    """Softmax attention from packed nodes to packed nodes."""

    groups: list[Group]
    back: Tensor  # (T, h) int32: where each node's output stands among those of all groups

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(T, d), (S, d), (S, d) to (T, d). Rows are taken from nodes in fp32, as the gradients of
        many rows add up in one node: in bf16, the gradient of a prompt would be twice as far from
        that of fp32."""
        heads, dtype = self.back.shape[1], _kernel_dtype(queries.device)
        with torch.autocast(queries.device.type, enabled=False):
            q, k, v = (x.float().reshape(len(x) * heads, -1) for x in (queries, keys, values))
            done = [
                F.scaled_dot_product_attention(
                    F.embedding(group.queries, q).to(dtype),
                    F.embedding(group.keys, k).to(dtype),
                    F.embedding(group.keys, v).to(dtype),
                    attn_mask=group.mask,
                ).flatten(0, 2)
                for group in self.groups
            ]
            return F.embedding(self.back, torch.cat(done)).flatten(1)


def _kernel_dtype(device: torch.device) -> torch.dtype:
    """The type that the kernel is given: a GPU's kernels sum in fp32 whatever they are given; a
    CPU's plain one does not."""
    if device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return torch.float32


@dataclass(frozen=True)
class Rows:
    """A group before it is spread over heads: numbers of nodes."""

    queries: Tensor  # (n, q) int32
    keys: Tensor  # (n, k) int32
    first: Tensor  # (n,) int32: where a row's first query stands; the others follow

    def group(self, heads: int, causal: bool) -> Group:
        head = torch.arange(heads, dtype=torch.int32, device=self.first.device)[:, None]
        within, key = (torch.arange(x.shape[1], device=x.device) for x in (self.queries, self.keys))
        mask = key <= (self.first[:, None] + within)[:, None, :, None]  # (n, 1, q, k)
        mask = mask if causal else torch.ones_like(mask)
        queries, keys = (x[:, None] * heads + head for x in (self.queries, self.keys))
        return Group(queries, keys, mask)


@dataclass(frozen=True)
class Pattern:
    """An attention as the fewest integers that describe it: they are made on the CPU, and
    travel."""

    groups: list[Rows]
    start: Tensor  # (T,) int32: where the first head's output stands of each node
    apart: Tensor  # (T,) int32: how far on the next head's is

    def attention(self, heads: int, causal: bool) -> Attention:
        head = torch.arange(heads, dtype=torch.int32, device=self.start.device)
        back = self.start[:, None] + self.apart[:, None] * head
        return Attention([rows.group(heads, causal) for rows in self.groups], back)


@dataclass(frozen=True)
class Packing:
    """How the rows of a layout attend. U is the number of rows, with those that only round it up.

    `few`: all rows in one group, as wide as `path`, so that batches have few distinct shapes.
    """

    path: Ints  # (U, W): the node at each position of each row
    lengths: Ints  # (U,)
    own: Ints  # (U,) how many nodes at its end each row owns
    heads: int
    few: bool

    def every(self, nodes: int) -> Pattern:
        """The attention of all nodes, and of unused ones up to `nodes`, to which no node attends.
        On a CPU, rows that own a like number of nodes (within a factor of four) are padded
        together."""
        first = self.lengths - self.own
        level = np.zeros_like(first) if self.few else np.searchsorted(LEVELS, self.own)
        start, width = np.zeros_like(first), np.zeros_like(first)  # of each row's outputs
        groups, before = [], 0
        for one in np.unique(level):
            rows = (level == one).nonzero()[0]
            widest = self._width(self.own[rows])
            position = first[rows, None] + np.arange(widest)
            queries = self.path[rows[:, None], position.clip(max=self.path.shape[1] - 1)]
            groups.append(self._rows(rows, queries, first[rows]))
            start[rows] = before + np.arange(len(rows)) * self.heads * widest
            width[rows] = widest
            before += len(rows) * self.heads * widest
        row = np.arange(len(first)).repeat(self.own)  # of each node
        within = np.arange(len(row)) - (self.own.cumsum() - self.own)[row]
        return _pattern(groups, grown(start[row] + within, nodes), grown(width[row], nodes))

    def last(self) -> Pattern:
        """The attention of each row's last position alone, as query number u."""
        rows = np.arange(len(self.path), dtype=np.int32)
        group = self._rows(rows, rows[:, None], self.lengths - 1)
        return _pattern([group], rows * self.heads, np.ones_like(rows))

    def _rows(self, rows: Ints, queries: Ints, first: Ints) -> Rows:
        keys = self.path[rows, : self._width(self.lengths[rows])]
        return Rows(*(torch.from_numpy(x) for x in (queries, keys, first)))

    def _width(self, lengths: Ints) -> int:
        return self.path.shape[1] if self.few else int(lengths.max())


def _pattern(groups: list[Rows], start: Ints, apart: Ints) -> Pattern:
    return Pattern(groups, torch.from_numpy(start), torch.from_numpy(apart))


def grown(values: Ints, size: int, value: int = 0) -> Ints:
    """`values` (n, ...) with rows of `value` behind them, `size` rows in all."""
    made = np.full((size, *values.shape[1:]), value, np.int32)
    made[: len(values)] = values
    return made


def rounded(number: int) -> int:
    """The next of few numbers that is as large: four between a power of two and the next, at least
    16 apart."""
    step = max(16, (1 << number.bit_length() - 1) // 4)
    return -(-number // step) * step
