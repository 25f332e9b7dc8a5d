"""CLIPScore: embeddings of pictures and captions flow in, one number a picture flows out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.errors import DataError

PREFIX = "A photo depicts "  # stands before every caption and reference that is embedded
WEIGHT = 2.5  # spreads the cosines of CLIP over about [0, 1]


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """CLIPScore (Hessel et al. 2021, arXiv:2104.08718), 2.5 x max(cos, 0): (N,) float64.

    Rows of `images` and `texts` (N, e) belong together and may have any length. The texts are
    embedded with `PREFIX` before them. Published values are of ViT-B/32: another backbone, or an
    adapted one, has a scale of its own.

    >>> clip_score(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([0.], dtype=torch.float64)
    """
    return WEIGHT * _cosines(images, texts).clamp(min=0)


def ref_clip_score(images: Tensor, texts: Tensor, refs: Tensor, rows: Tensor) -> Tensor:
    """RefCLIPScore: the harmonic mean of `clip_score` and the best cosine, at least 0, of the
    caption with a reference of its image: (N,) float64, 0 where either is 0.

    `refs` (M, e) are the embedded references, `rows` (M,) the image of each.

    >>> one = torch.tensor([[1.0, 0.0]])
    >>> ref_clip_score(one, one, refs=one, rows=torch.tensor([0]))
    tensor([1.4286], dtype=torch.float64)
    """
    alone = torch.bincount(rows, minlength=len(images)) == 0  # (N,)
    if alone.any():
        row = int(alone.nonzero()[0])
        raise DataError(f"every image must have a reference, row `{row}` of the images has none.")
    score = clip_score(images, texts)
    cosines = _cosines(texts[rows], refs)  # (M,)
    best = torch.zeros_like(score).scatter_reduce(0, rows, cosines, "amax")  # at least 0
    return 2 * score * best / (score + best).clamp(min=torch.finfo(score.dtype).tiny)


def _cosines(ours: Tensor, theirs: Tensor) -> Tensor:
    return F.cosine_similarity(ours.double(), theirs.double(), dim=1)
