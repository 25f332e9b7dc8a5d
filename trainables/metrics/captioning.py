"""Caption metrics without Java: captions and human references flow in, one number a picture out.

Every metric compares the same words, coco-caption's (`words`), and equals the value of
pycocoevalcap or NLTK: the tests compare them. A simpler way to cut words (lower case, ASCII
punctuation struck out) would move corpus BLEU-4 by up to 0.001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.errors import DataError
from trainables.metrics.cider import Cider
from trainables.metrics.clip_score import clip_score, ref_clip_score
from trainables.metrics.meteor import meteor_stem
from trainables.metrics.ngrams import (
    Sentence,
    bleu_counts,
    bleu_of,
    diversity,
    repetition,
    rouge_l,
    sentence,
    smoothed_bleu,
)
from trainables.metrics.spice import spice, why_no_spice
from trainables.metrics.tokens import words

__all__ = [
    "CaptionScores",
    "References",
    "bleu_of",
    "clip_score",
    "diversity",
    "ref_clip_score",
    "score_captions",
    "spice",
    "why_no_spice",
    "words",
]


class References:
    """The references of N images, cut into words and counted once for all captions of a split.

    CIDEr's weights come from exactly these images, as in coco-caption. A part of the split has
    other weights, so its CIDEr differs from the mean over its images in the whole split.
    """

    def __init__(self, every: Sequence[Sequence[str]]) -> None:
        if not every:
            raise DataError("`references` must be of at least 1 image, got none.")
        for row, own in enumerate(every):
            if isinstance(own, str):
                raise DataError(f"`references`, image {row}: must be a list of texts, got {own!r}.")
            if not own:
                raise DataError(f"`references`, image {row}: must be at least 1 text, got none.")
        self.sentences = [[sentence(text) for text in own] for own in every]
        self.cider = Cider(self.sentences)

    def __len__(self) -> int:
        return len(self.sentences)


@dataclass(frozen=True)
class CaptionScores:
    """One caption of each of N images, scored.

    `values`, (N,) float64 each: `cider_d` (what papers call CIDEr) and `cider`, in [0, 10];
    `rouge_l`; `meteor_stem` (METEOR without synonyms); `sentence_bleu4` (BLEU-4 of each caption by
    itself, smoothed: its mean is not corpus BLEU-4, which alone is called BLEU-4 in papers);
    `repetition` (lower is better). All but CIDEr in [0, 1]. An empty caption has 0 in all.

    `bleu`, (N, 10) float64: 4 matches, 4 totals, caption length, closest reference length. Their
    sums over any images give corpus BLEU (`bleu_of`).
    """

    values: dict[str, Tensor]
    bleu: Tensor

    def summary(self) -> dict[str, float]:
        """`bleu1` to `bleu4` of the corpus, and the mean of each of `values`."""
        corpus = bleu_of(self.bleu.sum(0))
        found = {f"bleu{order}": float(value) for order, value in enumerate(corpus, start=1)}
        return found | {name: float(value.mean()) for name, value in self.values.items()}


def score_captions(
    captions: Sequence[str], references: References, meteor: bool = True
) -> CaptionScores:
    """Score one caption for each image of `references`, in their order.

    Without `meteor` there is no `meteor_stem`: it takes longer than all others together.

    >>> references = References([["a red dog", "a dog runs"], ["a blue boat"]])
    >>> scores = score_captions(["a red dog", "a boat"], references, meteor=False)
    >>> scores.values["rouge_l"]
    tensor([1.0000, 0.7722], dtype=torch.float64)
    >>> round(scores.summary()["bleu1"], 4)
    0.8187
    """
    if len(captions) != len(references):
        raise DataError(
            f"`captions` must be one for each of {len(references):,} images, got {len(captions):,}."
        )
    ours = [sentence(caption) for caption in captions]
    pairs = list(zip(ours, references.sentences, strict=True))
    cider = [references.cider.score(image, caption) for image, caption in enumerate(ours)]
    counts = np.array([bleu_counts(*pair) for pair in pairs], np.float64)
    values = {
        "cider_d": [clipped for clipped, _ in cider],
        "cider": [plain for _, plain in cider],
        "rouge_l": [rouge_l(*pair) for pair in pairs],
        "sentence_bleu4": smoothed_bleu(counts).tolist(),
        "repetition": [repetition(caption.words) for caption in ours],
    }
    if meteor:
        values["meteor_stem"] = [_meteor(*pair) for pair in pairs]
    return CaptionScores(
        {name: torch.tensor(found, dtype=torch.float64) for name, found in values.items()},
        torch.from_numpy(counts),
    )


def _meteor(caption: Sentence, references: Sequence[Sentence]) -> float:
    return meteor_stem(caption.words, [reference.words for reference in references])
