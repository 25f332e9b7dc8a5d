"""CIDEr: a split's references flow in once, each caption's agreement with its own flows out.

A run of words counts the more, the fewer images have it in their references: "a man" says little,
"slot machine" a lot.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from trainables.metrics.ngrams import ORDERS, Gram, Sentence

SIGMA = 6.0  # of the penalty on another length, in words
Norms = list[float]  # the length of a caption's vector of runs of 1, 2, 3 and 4 words


class Cider:
    """The weights of every run of words in the references of N images.

    CIDEr (Vedantam et al. 2015, arXiv:1411.5726): the cosine of a caption's and a reference's
    vectors, a dimension for each run of n words, its value the count times log(N / images that
    have it in a reference); the mean over references and over n = 1 to 4, times 10. CIDEr-D, which
    papers print as CIDEr: the caption's counts are clipped at the reference's, and a gaussian of
    the difference in length multiplies each cosine. Both without stems, as the authors' code has
    it. CIDEr-D is what pycocoevalcap's `Cider` gives: in [0, 10], while papers print it times 100.

    With one image every weight is log 1 = 0, and so is every score.

    >>> from trainables.metrics.ngrams import sentence
    >>> cider = Cider([[sentence("a red dog")], [sentence("a blue boat")]])
    >>> [round(cider.score(0, sentence(said))[0], 2) for said in ("a red dog", "a blue boat")]
    [7.5, 0.0]
    """

    def __init__(self, references: Sequence[Sequence[Sentence]]) -> None:
        images: Counter[Gram] = Counter()  # how many images have each run
        for own in references:
            images.update({gram for reference in own for gram in reference.grams})
        self.unseen = math.log(len(references)) ** 2  # a run that no reference has
        # Squared, as each product of two vectors has the weight twice.
        self.weights = {g: math.log(len(references) / count) ** 2 for g, count in images.items()}
        self.references = references
        self.norms = [[self._norms(reference) for reference in own] for own in references]

    def _norms(self, text: Sentence) -> Norms:
        squares = [0.0] * ORDERS
        for gram, count in text.grams.items():
            squares[len(gram) - 1] += count * count * self.weights.get(gram, self.unseen)
        return [math.sqrt(square) for square in squares]

    def score(self, image: int, caption: Sentence) -> tuple[float, float]:
        """CIDEr-D and CIDEr of a caption of image number `image`."""
        own = self._norms(caption)
        clipped = plain = 0.0
        for reference, norms in zip(self.references[image], self.norms[image], strict=True):
            both = self._products(caption, reference)
            scales = [a * b for a, b in zip(own, norms, strict=True)]
            gap = _pairs(caption) - _pairs(reference)
            penalty = math.exp(-(gap**2) / (2 * SIGMA**2))
            clipped += penalty * sum(c / s for (c, _), s in zip(both, scales, strict=True) if s)
            plain += sum(p / s for (_, p), s in zip(both, scales, strict=True) if s)
        share = 10 / ORDERS / len(self.references[image])
        return clipped * share, plain * share

    def _products(self, caption: Sentence, reference: Sentence) -> list[tuple[float, float]]:
        """For each order the product of the two vectors, clipped and not."""
        clipped, plain = [0.0] * ORDERS, [0.0] * ORDERS
        for gram, count in caption.grams.items():
            other = reference.grams.get(gram, 0)
            if other:
                weight = self.weights[gram] * other
                clipped[len(gram) - 1] += weight * min(count, other)
                plain[len(gram) - 1] += weight * count
        return list(zip(clipped, plain, strict=True))


def _pairs(text: Sentence) -> int:
    """The length as CIDEr-D's published code takes it: pairs of words, so that none and one word
    are equally long."""
    return max(0, len(text.words) - 1)
