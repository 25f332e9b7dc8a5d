"""Attention of ragged rows that share nodes: who looks at whom, as few padded calls.

Flows in: the node at each position of each row. Flows out: an `Attention`, made of integers on the
CPU and kept on the device, from packed nodes to packed nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# On a GPU shapes are rounded up to few: a step recorded for one batch can be replayed for others.
ROUNDED = {"cpu": (1, 1), "cuda": (16, 64)}  # rows (a divisor of a pass's) and positions, nodes


@dataclass(frozen=True)
class Group:
    """Rows that attend in one padded call: the queries are the nodes that a row owns, the keys all
    nodes on its path from the root. Numbers point into (nodes x heads) vectors of one head each."""

    queries: Tensor  # (n, h, q) int64
    keys: Tensor  # (n, h, k) int64
    mask: Tensor  # (n, 1, q, k) bool, true where a query may look


@dataclass(frozen=True)
class Attention:
    """Softmax attention from packed nodes to packed nodes."""

    groups: list[Group]
    back: Tensor  # (T, h) int64: where each node's output stands among those of all groups

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(T, d), (S, d), (S, d) to (T, d), in fp32: many rows' gradients meet in one node."""
        heads = self.back.shape[1]
        with torch.autocast(queries.device.type, enabled=False):
            q, k, v = (x.float().reshape(len(x) * heads, -1) for x in (queries, keys, values))
            done = [
                F.scaled_dot_product_attention(
                    F.embedding(group.queries, q),
                    F.embedding(group.keys, k),
                    F.embedding(group.keys, v),
                    attn_mask=group.mask,
                ).flatten(0, 2)
                for group in self.groups
            ]
            return F.embedding(self.back, torch.cat(done)).flatten(1)


@dataclass(frozen=True)
class Packing:
    """How the rows of a layout attend. U rows, those that only round their number up included."""

    path: Tensor  # (U, W) int64: the node at each position of each row
    lengths: Tensor  # (U,)
    own: Tensor  # (U,) how many nodes at its end each row owns
    heads: int
    causal: bool
    device: torch.device

    def attention(self, unused: int) -> Attention:
        """Of all nodes, and `unused` ones that nobody looks at. On a CPU, rows that own a like
        number of nodes (within a factor of four) are padded together."""
        level = self.own.clamp(min=1).float().log2().div(2).ceil()
        if self.device.type != "cpu":
            level = torch.zeros_like(level)
        back = torch.zeros(int(self.own.sum()) + unused, self.heads, dtype=torch.int64)
        groups, before = [], 0
        for one in level.unique():
            rows = (level == one).nonzero()[:, 0]
            own, start = self.own[rows, None], (self.lengths - self.own)[rows, None]
            within = torch.arange(self._rounded(own))
            queries = self.path[rows].gather(1, (start + within).clamp(max=self.path.shape[1] - 1))
            owned = within < own  # (n, q)
            row = torch.arange(len(rows))[:, None]
            place = before + row * self.heads * len(within) + within  # (n, q)
            head = torch.arange(self.heads) * len(within)
            back[queries[owned]] = place[owned][:, None] + head
            groups.append(self._group(rows, queries, start + within))
            before += len(rows) * self.heads * len(within)
        return Attention(groups, back.to(self.device))

    def last(self) -> Attention:
        """Of each row's last position alone, as query number u."""
        every = torch.arange(len(self.path))
        group = self._group(every, every[:, None], self.lengths[:, None] - 1)
        back = every[:, None] * self.heads + torch.arange(self.heads)
        return Attention([group], back.to(self.device))

    def _group(self, rows: Tensor, queries: Tensor, positions: Tensor) -> Group:
        """`rows` (n,) with their `queries` (n, q), which stand at `positions` (n, q)."""
        width = self._rounded(self.lengths[rows])
        head = torch.arange(self.heads)[:, None]
        mask = torch.arange(width) <= positions[..., None]
        mask = mask if self.causal else torch.ones_like(mask)
        return Group(
            (queries[:, None] * self.heads + head).to(self.device),
            (self.path[rows, None, :width] * self.heads + head).to(self.device),
            mask[:, None].to(self.device),
        )

    def _rounded(self, lengths: Tensor) -> int:
        step = ROUNDED[self.device.type][0]
        return -(-int(lengths.max()) // step) * step
