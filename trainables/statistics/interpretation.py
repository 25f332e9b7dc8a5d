"""What learned prompt vectors stand for, and how far that may be believed.

Flows in: the vectors of a prompt, (M, d), or of one prompt a class, (C, M, d), and their backbone.
Flows out: the words nearest to each and whether a random vector comes as near, the accuracy that
each vector carries, and how much the prompts of several seeds agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import check
from trainables.errors import DataError
from trainables.models.backbone import Backbone
from trainables.models.vocabulary import Measure, Vocabulary, Word
from trainables.statistics.chance import Floats, correct, null_distances, sphere


@dataclass(frozen=True)
class Nearest:
    """The k nearest words of each vector, nearest first; `...` is M or C, M."""

    tokens: Tensor  # (..., k) int64
    distances: Tensor  # (..., k)
    vocabulary: Vocabulary

    def words(self, *index: int) -> list[tuple[Word, float]]:
        """The words of vector `index` (`m`, or `c, m`) with their distances."""
        tokens, distances = self.tokens[index], self.distances[index]
        words = [self.vocabulary.word(token) for token in tokens.tolist()]
        return list(zip(words, distances.tolist(), strict=True))


def nearest_words(vectors: Tensor, backbone: Backbone, k: int, measure: Measure) -> Nearest:
    """For each vector (M, d) the `k` nearest words of the backbone's table of word embeddings.

    >>> found = nearest_words(torch.randn(4, 32), backbone, k=3, measure="cosine")
    >>> found.distances.shape  # (M, k)
    torch.Size([4, 3])
    """
    vocabulary = Vocabulary.of(backbone)
    rows = _rows("vectors", vectors, backbone)
    tokens, distances = vocabulary.nearest(rows, k, measure)
    shape = (*vectors.shape[:-1], k)
    return Nearest(tokens.view(shape), distances.view(shape), vocabulary)


@dataclass(frozen=True)
class Chance:
    """How near each vector's nearest word is, beside random vectors of its norm.

    The null: directions uniform on the sphere, scaled to the vector's own norm. The norm must
    match because a longer vector is farther from every word, whatever its direction. The embedding
    of a random token is no null: it is an entry of the table, its distance is 0, and nothing that
    was learned could be nearer. A small p says "nearer than a random direction", not "means this
    word": embeddings share a mean direction, and a vector with a part of it is near to many words.

    All vectors are compared with the same directions. Each p is valid by itself; together they
    depend on each other, which Holm allows in any form and Benjamini-Hochberg where positive. No p
    is below 1 / (draws + 1), so under Holm M vectors need more than 20 M draws to reach 0.05.
    """

    nearest: Tensor  # (...) distance of the nearest word
    low: Tensor  # (...) 5 % quantile of the null
    high: Tensor  # (...) 95 % quantile
    p: Tensor  # (...) share of random vectors at least as near, each count + 1
    corrected: Tensor  # (...) p corrected for the number of vectors
    correction: Literal["holm", "bh"]


@torch.no_grad()
def against_random(
    vectors: Tensor,
    backbone: Backbone,
    measure: Measure,
    draws: int = 1000,
    seed: int = 0,
    correction: Literal["holm", "bh"] = "holm",
) -> Chance:
    """Whether the words nearest to `vectors` are nearer than chance brings them."""
    check(draws >= 1, "draws", "at least 1", draws)
    vocabulary = Vocabulary.of(backbone)
    rows = _rows("vectors", vectors, backbone)
    nearest = vocabulary.nearest(rows, 1, measure)[1].double().numpy()  # (R, 1)
    null = null_distances(
        vocabulary, rows.double().norm(dim=1), measure, sphere((draws, rows.shape[1]), seed)
    )
    as_near = null <= nearest * (1 + 1e-6)  # equal but for rounding
    p = (as_near.sum(1) + 1) / (draws + 1)
    low, high = np.quantile(null, (0.05, 0.95), axis=1)

    def shaped(values: Floats) -> Tensor:
        return torch.from_numpy(np.broadcast_to(values, len(rows)).copy()).view(vectors.shape[:-1])

    fixed = shaped(correct(p, correction))
    return Chance(shaped(nearest[:, 0]), shaped(low), shaped(high), shaped(p), fixed, correction)


@dataclass(frozen=True)
class Ablation:
    """How much accuracy is lost without each vector; below 0, the prompt is better without it."""

    full: float  # accuracy of the whole prompt
    removed: list[float]  # lost for each of the M when it is taken out: the prompt is one shorter
    replaced: list[float]  # lost when the mean of the words' embeddings stands in its place


def ablation(vectors: Tensor, backbone: Backbone, measure: Callable[[Tensor], float]) -> Ablation:
    """What each of the M vectors is worth by `measure`, which gives the accuracy of a prompt. With
    a prompt for each class, position m is taken from all of them. `measure` gets vectors (..., M,
    d), and (..., M - 1, d), an empty prompt where M is 1.

    >>> found = ablation(torch.ones(4, 32), backbone, measure=lambda vectors: len(vectors) / 4)
    >>> found.full, found.removed
    (1.0, [0.25, 0.25, 0.25, 0.25])
    """
    _rows("vectors", vectors, backbone)
    vectors = vectors.detach()
    mean = Vocabulary.of(backbone).vectors.mean(0).to(vectors)
    full = measure(vectors)
    removed, replaced = [], []
    for m in range(vectors.shape[-2]):
        shorter = torch.cat([vectors[..., :m, :], vectors[..., m + 1 :, :]], -2)
        other = vectors.clone()
        other[..., m, :] = mean
        removed.append(full - measure(shorter))
        replaced.append(full - measure(other))
    return Ablation(full, removed, replaced)


@dataclass(frozen=True)
class Agreement:
    """How alike two prompts are, by four measures, each a mean over vectors (and classes)."""

    cosine: float  # of the vectors at the same place
    matched_cosine: float  # of the one-to-one matching with the largest sum (Kuhn 1955)
    words: float  # overlap (Jaccard) of the k nearest words, same place
    matched_words: float  # the same of the pairs in that matching


@dataclass(frozen=True)
class Stability:
    """Agreement between seeds, and the agreement of random vectors of the same norms.

    The best matching makes even random vectors agree a little, so agreement is read against
    `random`. A draw is one pair of random prompts, with the norms of one pair of seeds and one
    class.
    """

    pairs: dict[tuple[int, int], Agreement]  # by places in the list
    mean: Agreement  # over the pairs
    random: Agreement  # mean over the draws
    random_high: Agreement  # 95 % quantile over the draws


@torch.no_grad()
def stability(
    prompts: Sequence[Tensor],
    backbone: Backbone,
    k: int = 10,
    measure: Measure = "cosine",
    draws: int = 100,
    seed: int = 0,
) -> Stability:
    """How much the prompts of several seeds, all (M, d) or all (C, M, d), agree."""
    check(len(prompts) >= 2, "prompts", "of at least 2 seeds", len(prompts))
    check(draws >= 1, "draws", "at least 1", draws)
    for number, prompt in enumerate(prompts):
        _rows(f"prompts[{number}]", prompt, backbone)
        if prompt.shape != prompts[0].shape:
            shapes = f"{tuple(prompts[0].shape)}, got {tuple(prompt.shape)}"
            raise DataError(f"`prompts[{number}]` must have the shape of the first, {shapes}.")
    vocabulary = Vocabulary.of(backbone)

    def words(vectors: Tensor) -> Tensor:  # (C, M, d) -> (C, M, k)
        return vocabulary.nearest(vectors.flatten(0, 1), k, measure)[0].view(*vectors.shape[:2], k)

    stack = torch.stack([p.detach().float().cpu() for p in prompts])
    stack = stack.view(len(prompts), -1, *stack.shape[-2:])  # (S, C, M, d)
    near = [words(prompt) for prompt in stack]
    pairs = list(combinations(range(len(prompts)), 2))
    values = [_agreements(stack[a], stack[b], near[a], near[b]).mean(0) for a, b in pairs]

    random = np.random.default_rng(seed)
    drawn = torch.tensor(pairs)[random.integers(len(pairs), size=draws)].T  # (2, n)
    classes = torch.from_numpy(random.integers(stack.shape[1], size=draws))
    norms = stack.norm(dim=3)[drawn, classes]  # (2, n, M)
    ours, theirs = sphere((2, draws, *stack.shape[2:]), seed) * norms[..., None]  # (n, M, d)
    chance = _agreements(ours, theirs, words(ours), words(theirs))  # (n, 4)
    return Stability(
        {pair: Agreement(*value.tolist()) for pair, value in zip(pairs, values, strict=True)},
        Agreement(*torch.stack(values).mean(0).tolist()),
        Agreement(*chance.mean(0).tolist()),
        Agreement(*chance.quantile(0.95, dim=0).tolist()),
    )


def _agreements(ours: Tensor, theirs: Tensor, our_words: Tensor, their_words: Tensor) -> Tensor:
    """The four values of `Agreement` for each of C pairs of prompts: (C, M, d) -> (C, 4)."""
    from scipy.optimize import linear_sum_assignment

    cosines = F.normalize(ours, dim=2) @ F.normalize(theirs, dim=2).mT  # (C, M, M)
    same = (our_words[:, :, None, :, None] == their_words[:, None, :, None, :]).any(4).sum(3)
    overlap = same / (2 * our_words.shape[2] - same)  # (C, M, M), of two sets of k
    place = torch.arange(ours.shape[1])
    rows = []
    for cosine, shared in zip(cosines, overlap, strict=True):
        match = torch.from_numpy(linear_sum_assignment(cosine.numpy(), maximize=True)[1])
        values = (
            cosine[place, place],
            cosine[place, match],
            shared[place, place],
            shared[place, match],
        )
        rows.append(torch.stack([value.float().mean() for value in values]))
    return torch.stack(rows)


def _rows(name: str, vectors: Tensor, backbone: Backbone) -> Tensor:
    """`vectors` as (R, d) in fp32 on the CPU. Raises where this backbone has another width."""
    width = backbone.text_width
    if vectors.dim() not in (2, 3) or vectors.shape[-1] != width or 0 in vectors.shape:
        raise DataError(
            f"`{name}` must be (M, {width}) or (C, M, {width}), as wide as the token embeddings of "
            f"`{backbone.name}`, got {tuple(vectors.shape)}."
        )
    rows = vectors.detach().float().cpu().reshape(-1, width)
    wrong = (~rows.isfinite().all(1)).nonzero()
    if len(wrong):
        place = np.unravel_index(int(wrong[0]), vectors.shape[:-1])
        at = ", ".join(str(int(i)) for i in place)
        raise DataError(f"`{name}[{at}]` must be finite, got a vector with NaN or infinity.")
    return rows
