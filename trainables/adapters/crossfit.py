"""A head's few numbers chosen on few images, and those images measured by what the others chose.

Flows in: the logits of a grid of settings, some at a time. Flows out: the setting to keep, and for
each image the logits of the setting that is chosen without this image. (Measured on the images that
chose it, the best setting of a grid looks better than it is.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PARTS = 5  # of the images, each measured by what is chosen on the others
BLOCK = 2**24  # logits at a time


def parts(labels: Tensor) -> Tensor:
    """A part for each image (n,), 0 to `PARTS` - 1, among which each class is spread evenly."""
    part = torch.empty_like(labels)
    part[labels.argsort(stable=True)] = torch.arange(len(labels), device=labels.device) % PARTS
    return part


def blocks(numbers: Sequence[float], like: Tensor, each: int) -> tuple[Tensor, ...]:
    """The numbers of a grid as a tensor like `like`, in parts: as many at a time as memory allows
    where each number gives `each` logits."""
    every = torch.tensor(numbers, dtype=like.dtype, device=like.device)
    return every.split(max(1, BLOCK // each))


def choose(grid: Iterable[Tensor], labels: Tensor, accurate: bool = False) -> tuple[int, Tensor]:
    """The number of the likeliest setting of `grid`, and the cross-fitted logits (n, C). `grid`
    gives the logits (A, n, C) of A settings at a time. With `accurate` the most accurate setting is
    chosen, among equal ones the likeliest: with few images that is the worse choice. Among settings
    equal in all, the first."""
    part = parts(labels)
    apart = F.one_hot(part, PARTS) == 0  # (n, P)
    every = torch.ones_like(apart[:, :1])
    counted = torch.cat([every, apart], 1).double()  # of all, then of those not of part 0, 1, ...
    most = likeliest = counted.new_full((1 + PARTS,), -torch.inf)
    number = torch.zeros_like(most, dtype=torch.int64)
    crossed, before, images = torch.zeros(0), 0, torch.arange(len(part), device=part.device)
    for logits in grid:
        own = logits.log_softmax(2).gather(2, labels.expand(len(logits), -1)[..., None])
        likely = own[..., 0].double() @ counted  # (A, 1 + P)
        right = torch.zeros_like(likely)
        if accurate:
            right = (logits.argmax(2) == labels).double() @ counted
        at = likely.where(right == right.amax(0), -torch.inf).argmax(0)[None]  # (1, 1 + P)
        right, likely = right.gather(0, at)[0], likely.gather(0, at)[0]
        better = (right > most) | ((right == most) & (likely > likeliest))
        most, likeliest = right.where(better, most), likely.where(better, likeliest)
        number = (before + at[0]).where(better, number)
        found = logits[at[0, 1:][part], images]
        crossed = found.where(better[1:][part][:, None], crossed) if before else found
        before += len(logits)
    return int(number[0]), crossed


def repeated(labels: Tensor) -> bool:
    """Whether every class of the labels (N,) has two images or more, so that one can be left
    out."""
    return bool(torch.bincount(labels).min() >= 2)


def left_out(
    fit: Callable[[Tensor, Tensor, Tensor], Tensor], images: Tensor, labels: Tensor
) -> Tensor | None:
    """The logits (A, N, C) of each image by a fit without the part that it is in; `fit(images,
    labels, others)` gives (A, n, C) for the images `others`. None where a class has one image
    only."""
    if not repeated(labels):
        return None
    part = parts(labels)
    found: list[Tensor] = []
    for one in range(PARTS):
        own = part == one
        found.append(fit(images[~own], labels[~own], images[own]))
    order = torch.cat([(part == one).nonzero()[:, 0] for one in range(PARTS)])
    return torch.cat(found, 1)[:, order.argsort()]
