"""Hard negatives from the feature store: each image's most similar others, found once a process."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.errors import DataError


@torch.no_grad()
def nearest_images(image_embeds: Tensor, k: int, groups: Tensor, tile: int = 2048) -> Tensor:
    """Rows of the `k` images most similar to each, best first: (N, e) -> (N, k) int64.

    Exact cosine search. Images of the same group, the image itself among them, are left out. Where
    some image has fewer than `k` others, all rows get as many as that one has. Memory is a few
    `tile` x `tile` matrices, whatever N is.
    """
    embeds = F.normalize(image_embeds.float(), dim=-1)
    images, sizes = torch.unique(groups, return_counts=True)
    k = min(k, len(embeds) - int(sizes.max()))
    if k < 1:
        raise DataError(f"`mined` negatives need at least 2 different images, got {len(images)}.")
    tiles = [slice(start, start + tile) for start in range(0, len(embeds), tile)]
    rows = []
    for mine in tiles:
        best = embeds.new_full((len(embeds[mine]), k), -torch.inf)  # (tile, k) similarities
        at = groups.new_zeros(best.shape)
        for other in tiles:
            similarity = embeds[mine] @ embeds[other].T  # (tile, tile)
            similarity.masked_fill_(groups[mine, None] == groups[other], -torch.inf)
            near, column = similarity.topk(min(k, similarity.shape[1]))
            best, order = torch.cat([best, near], 1).topk(k)
            at = torch.cat([at, column + other.start], 1).gather(1, order)
        rows.append(at)
    return torch.cat(rows)
