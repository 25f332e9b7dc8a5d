"""METEOR without Java and without WordNet: words flow in, a score of each caption flows out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

# METEOR 1.5's tuned values for English (Denkowski and Lavie 2014).
ENGLISH = {"alpha": 0.85, "beta": 0.2, "gamma": 0.6}


class _Stems:
    """NLTK's Porter stemmer, with a memory, as the same words come again and again."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = functools.lru_cache(1 << 16)(PorterStemmer().stem)


class _NoSynonyms:
    """In the place of WordNet: no word has a synonym."""

    def synsets(self, _word: str) -> list[Any]:
        return []


@functools.cache
def _stems() -> _Stems:
    return _Stems()


def meteor_stem(caption: list[str], references: Sequence[list[str]]) -> float:
    """NLTK's `meteor_score` in [0, 1]: words are aligned where they or their Porter stems are
    equal, never by a synonym, and the best reference counts.

    alpha 0.85, beta 0.2 and gamma 0.6 are those of METEOR 1.5 for English. METEOR's weights for
    stems, function words and paraphrases are missing, so the values are near METEOR's and must not
    be printed beside them. A caption equal to a reference has 1, as in METEOR; NLTK's formula would
    take gamma x (1 / words)^beta off.

    >>> round(meteor_stem(["a", "dog", "runs"], [["a", "dog", "running"]]), 4)
    0.5184
    """
    from nltk.translate.meteor_score import meteor_score  # 2 s, for those who ask for METEOR

    if caption and caption in references:
        return 1.0
    return float(
        meteor_score(references, caption, stemmer=_stems(), wordnet=_NoSynonyms(), **ENGLISH)
    )
