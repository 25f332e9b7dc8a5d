"""Records in memory: ragged captions, a split's features, and the batches drawn from them.

Flows in: a feature store's tensors, mapped read-only. Flows out: `Batch`es, each a pure function of
(config, seed, step), so that a resumed run and a search of a hundred trials see the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainables.data.transfer import send


@dataclass(frozen=True)
class Tokens:
    """Captions as ragged token ids, each `[SOT, words..., EOT]` and never padded."""

    ids: Tensor  # (T,) int64, all captions one after the other
    offsets: Tensor  # (N + 1,) int64, caption n is ids[offsets[n]:offsets[n + 1]]
    # How the text tower computes them, by the form in which it was asked to.
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:  # (N,)
        return self.offsets.diff()

    def select(self, rows: Tensor) -> Tokens:
        """Captions `rows` (M,), in that order."""
        lengths = self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        within = torch.arange(int(offsets[-1]), device=self.ids.device)
        shift = (self.offsets[:-1][rows] - offsets[:-1]).repeat_interleave(lengths)
        return Tokens(self.ids[within + shift], offsets)

    def pad(self, value: int, length: int | None = None) -> Tensor:
        """As a padded (N, L) matrix; L is the longest caption unless given."""
        width = length or int(self.lengths.max())
        grid = torch.full((len(self), width), value, dtype=self.ids.dtype, device=self.ids.device)
        grid[torch.arange(width, device=grid.device) < self.lengths[:, None]] = self.ids
        return grid

    def cut(self, room: int) -> Tokens:
        """Captions of at most `room` tokens: longer ones keep their first tokens, and their
        last."""
        lengths = self.lengths
        within = torch.arange(len(self.ids)) - self.offsets[:-1].repeat_interleave(lengths)
        last = (lengths - 1).repeat_interleave(lengths)
        kept = self.ids[(within < room - 1) | (within == last)]
        return Tokens(kept, torch.cat([lengths.new_zeros(1), lengths.clamp(max=room).cumsum(0)]))

    def unique(self) -> tuple[Tokens, Tensor]:
        """The distinct captions (K), with those that begin alike side by side; and for each caption
        the number of the distinct one that it equals: (N,) int64."""
        rows, inverse = self.pad(-1).unique(dim=0, return_inverse=True)
        lengths = (rows >= 0).sum(1)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return Tokens(rows[rows >= 0], offsets), inverse


@dataclass(frozen=True)
class Batch:
    """B images and M captions. `groups` say which belong together: equal number, same image."""

    image_embeds: Tensor  # (B, e) the frozen image tower's projected outputs, not normalised
    hidden: Tensor | None  # (B, S, w) states before the adapter's `image_block`, if it has one
    tokens: Tokens  # M captions
    text_embeds: Tensor | None  # (M, e) the frozen text tower's, for adapters that leave it alone
    image_groups: Tensor  # (B,) int64
    caption_groups: Tensor  # (M,) int64
    progress: Tensor  # () float64, share of the run's steps already done, in [0, 1)
    frames: Tensor | None = None  # (B, F, e) the same of each frame, where the images are clips

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, except for the tokens: the text tower plans them on the CPU."""
        return Batch(
            send(self.image_embeds, device),
            send(self.hidden, device),
            self.tokens,
            send(self.text_embeds, device),
            send(self.image_groups, device),
            send(self.caption_groups, device),
            send(self.progress, device),
            send(self.frames, device),
        )


@dataclass(frozen=True)
class Predictions:
    """The input of the retrieval metrics: L2-normalised embeddings of the joint space."""

    image_embeds: Tensor  # (B, e)
    text_embeds: Tensor  # (M, e)
