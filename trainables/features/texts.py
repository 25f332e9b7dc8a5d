"""The words of a split: every caption as text and as CLIP's tokens, and the image of each.

Flows in: rows of shards, without their pixels. Flows out: `Texts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.data.batches import Tokens
from trainables.data.shards import CAPTION_COLUMNS, captions_of, chunks
from trainables.models.backbone import Backbone
from trainables.models.cleaning import repairs

TEXT_COLUMNS = (*CAPTION_COLUMNS, "sha256")


@dataclass(frozen=True)
class Texts:
    """All of a split but its pixels."""

    ids: list[str]
    texts: list[str]
    tokens: Tokens
    caption_rows: Tensor
    groups: Tensor
    truncated: int
    repaired: int = 0  # captions that the backbone's cleaning mended


def read_texts(backbone: Backbone, rows: Iterable[Mapping[str, Any]]) -> Texts:
    """Tokenise a split's captions; `rows` have `TEXT_COLUMNS`."""
    ids: list[str] = []
    every: list[str] = []
    counts: list[int] = []  # captions of each image
    groups: list[int] = []
    group_of: dict[bytes, int] = {}
    token_ids = [torch.zeros(0, dtype=torch.int32)]
    lengths = [torch.zeros(1, dtype=torch.int64)]
    truncated = repaired = 0
    for chunk in chunks(rows, 4096):
        texts = [captions_of(row) for row in chunk]
        ids += [row["id"] for row in chunk]
        counts += map(len, texts)
        for row in chunk:
            groups.append(group_of.setdefault(bytes.fromhex(row["sha256"]), len(group_of)))
        flat = [caption for captions in texts for caption in captions]
        every += flat
        repaired += repairs(flat, backbone.cleaning)
        tokens, cut = backbone.tokenize(flat)
        token_ids.append(tokens.ids.int())  # half the size on disk; embeddings take either
        lengths.append(tokens.lengths)
        truncated += cut
    tokens = Tokens(torch.cat(token_ids), torch.cat(lengths).cumsum(0))
    caption_rows = torch.arange(len(ids)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    of_images = torch.tensor(groups, dtype=torch.int64)
    return Texts(ids, every, tokens, caption_rows, of_images, truncated, repaired)
