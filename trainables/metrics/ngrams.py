"""Words and runs of words: captions flow in, BLEU's counts, ROUGE-L and measures of repeating out.

Everything here is counted in one caption and its own references. CIDEr, which weighs words by the
whole split, is in `cider.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from torch import Tensor

from trainables.metrics.tokens import words
from trainables.statistics.bootstrap import Array

Gram: TypeAlias = tuple[str, ...]
ORDERS = 4  # runs of 1 to 4 words, in BLEU and in CIDEr
BETA = 1.2  # coco-caption's ROUGE-L: how much more recall counts than precision


@dataclass(frozen=True)
class Sentence:
    """The words of a caption, and how often each run of 1 to 4 of them occurs."""

    words: list[str]
    grams: Counter[Gram]


def sentence(text: str) -> Sentence:
    tokens = words(text)
    return Sentence(tokens, Counter(_grams(tokens)))


def _grams(tokens: list[str]) -> Iterator[Gram]:
    for order in range(1, ORDERS + 1):
        yield from zip(*(tokens[start:] for start in range(order)), strict=False)


def bleu_counts(caption: Sentence, references: Sequence[Sentence]) -> list[int]:
    """What BLEU (Papineni et al. 2002) sums over a corpus: 4 clipped matches, 4 totals, the
    caption's length and the closest reference's (the shorter of two), in words.

    >>> bleu_counts(sentence("a red dog"), [sentence("a red cat"), sentence("dog")])
    [3, 1, 0, 0, 3, 2, 1, 0, 3, 3]
    """
    matches = [0] * ORDERS
    for gram, count in caption.grams.items():
        most = max(reference.grams.get(gram, 0) for reference in references)
        matches[len(gram) - 1] += min(count, most)
    length = len(caption.words)
    totals = [max(0, length - order) for order in range(ORDERS)]
    _, closest = min((abs(len(r.words) - length), len(r.words)) for r in references)
    return [*matches, *totals, length, closest]


def bleu_of(sums: Array | Tensor) -> Array:
    """BLEU-1 to BLEU-4 in [0, 1] of summed `bleu_counts` (..., 10): (..., 4) float64; 0 where a run
    of that many words, or of fewer, matches nowhere.

    >>> counts = bleu_counts(sentence("a red dog"), [sentence("a red cat")])
    >>> bleu_of(np.array(counts)).round(4)
    array([0.6667, 0.5774, 0.    , 0.    ])
    """
    counts = np.asarray(sums, np.float64)
    matches, totals = counts[..., :4], counts[..., 4:8]
    length, closest = counts[..., 8:9], counts[..., 9:]
    with np.errstate(divide="ignore"):  # log 0 is -inf, and exp makes it 0 again
        logs = np.log(matches / totals.clip(1))
    brevity = np.minimum(0, 1 - closest / length.clip(1))
    return np.exp(logs.cumsum(-1) / np.arange(1, 5) + brevity)


def smoothed_bleu(counts: Array) -> Array:
    """BLEU-4 of each row (N, 10) by itself, as NLTK's `corpus_bleu` of one caption with smoothing
    method 1 gives it: 0.1 stands for no match, and without one common word it is 0. (N,)"""
    smoothed = counts.copy()
    smoothed[:, :4][smoothed[:, :4] == 0] = 0.1
    return np.where(counts[:, 0] > 0, bleu_of(smoothed)[:, 3], 0.0)


def rouge_l(caption: Sentence, references: Sequence[Sentence]) -> float:
    """coco-caption's ROUGE-L (Lin 2004) in [0, 1]: the F-measure with beta 1.2 of the best
    precision and the best recall of the longest common subsequence, over all references.

    >>> round(rouge_l(sentence("a red dog"), [sentence("a dog")]), 4)
    0.8299
    """
    places: dict[str, int] = {}  # a word's places in the caption, as bits
    for place, word in enumerate(caption.words):
        places[word] = places.get(word, 0) | 1 << place
    common = [(_longest(r.words, places, len(caption.words)), len(r.words)) for r in references]
    longest = max(length for length, _ in common)
    if longest == 0:
        return 0.0
    precision = longest / len(caption.words)
    recall = max(length / total for length, total in common if total)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest(tokens: list[str], places: dict[str, int], size: int) -> int:
    """The length of the longest common subsequence, a whole row of the table in one integer: a bit
    that is 0 is a place where the row steps up (Hyyro 2004)."""
    full = (1 << size) - 1
    row = full
    for word in tokens:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & full
    return size - row.bit_count()


def repetition(tokens: list[str]) -> float:
    """The share of a caption's pairs of neighbouring words that already stood in it: 0 for one that
    never repeats a pair, near 1 for a loop ("of a bench of a bench of a bench").

    >>> round(repetition("a bench of a bench of a bench".split()), 4)
    0.5714
    """
    pairs = list(pairwise(tokens))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def diversity(captions: Sequence[str]) -> dict[str, float]:
    """How little a set of captions repeats itself: distinct words and pairs of words over all of
    them (Li et al. 2016), distinct captions over captions, and the mean length in words.

    >>> {name: round(value, 2) for name, value in diversity(["a dog", "a dog", "a cat"]).items()}
    {'distinct_1': 0.5, 'distinct_2': 0.67, 'distinct_captions': 0.67, 'mean_words': 2.0}
    """
    every = [words(caption) for caption in captions]
    ones = [word for tokens in every for word in tokens]
    twos = [pair for tokens in every for pair in pairwise(tokens)]
    return {
        "distinct_1": len(set(ones)) / max(1, len(ones)),
        "distinct_2": len(set(twos)) / max(1, len(twos)),
        "distinct_captions": len(set(map(tuple, every))) / max(1, len(every)),
        "mean_words": len(ones) / max(1, len(every)),
    }
