"""The token-embedding table of a backbone as words that can be searched and read.

Flows in: a backbone. Flows out: the rows of its table that stand for text, each with its spelling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.convert_slow_tokenizer import bytes_to_unicode

from trainables.config import check
from trainables.models.backbone import Backbone

ROWS_A_PASS = 512  # vectors searched at a time: 512 x 49,408 scores are 100 MB
Measure: TypeAlias = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Word:
    """An entry of the vocabulary.

    CLIP's entries mark where a word ends, and nothing marks where one begins: `ing` is whole both
    as a word and as the end of `running`. SigLIP's entries mark the beginning only.
    """

    token: int  # its row in the table
    text: str  # `dog`; with an ellipsis where the word goes on, `phot…`; bytes as `<E2 80>`
    whole: bool

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Vocabulary:
    """The words of a backbone; special tokens and rows that no text can reach are left out."""

    tokens: Tensor  # (W,) int64, rows of the whole table
    vectors: Tensor  # (W, d)
    pieces: list[str]  # the tokenizer's own spelling of all its tokens
    kind: Literal["clip", "siglip", "dual", "embeddings"]

    @classmethod
    def of(cls, backbone: Backbone) -> Vocabulary:
        weight = backbone.word_matrix.float()
        tokenizer = backbone.tokenizer
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        used = torch.zeros(len(weight), dtype=torch.bool)
        used[[i for i, piece in enumerate(pieces) if piece is not None]] = True
        used[sorted(set(tokenizer.all_special_ids))] = False
        used &= (weight != 0).any(1).cpu()  # a row of zeros was never trained
        tokens = used.nonzero()[:, 0]
        return cls(tokens, weight[tokens.to(weight.device)], pieces, backbone.kind)

    def word(self, token: int) -> Word:
        piece = self.pieces[token]
        if self.kind == "siglip":
            whole = piece.startswith("\N{LOWER ONE EIGHTH BLOCK}")
            return Word(token, piece[1:] if whole else f"…{piece}", whole)
        if self.kind == "dual":  # BERT's marks; of others, the piece as it is
            whole = not piece.startswith("##")
            return Word(token, piece if whole else f"…{piece[2:]}", whole)
        whole = piece.endswith("</w>")
        text = _spell(piece.removesuffix("</w>"))
        return Word(token, text if whole else f"{text}…", whole)

    @cached_property
    def unit(self) -> Tensor:  # (W, d)
        return F.normalize(self.vectors, dim=1)

    @cached_property
    def squares(self) -> Tensor:  # (W,), the squared norms
        return self.vectors.square().sum(1)

    def nearest(self, vectors: Tensor, k: int, measure: Measure) -> tuple[Tensor, Tensor]:
        """Tokens of the `k` nearest words of each vector and their distances, nearest first:
        (R, d) -> (R, k) int64 and (R, k). The cosine distance is 1 - cos, from 0 to 2.
        """
        check(1 <= k <= len(self.tokens), "k", f"from 1 to {len(self.tokens)}", k)
        cosine = measure == "cosine"
        table = self.unit if cosine else self.vectors
        found, distances = [], []
        for own in vectors.to(table).split(ROWS_A_PASS):
            rows = F.normalize(own, dim=1) if cosine else own
            scores = rows @ table.T if cosine else rows @ table.T - self.squares / 2
            at = scores.topk(k).indices  # (rows, k)
            # The differences themselves: what the product leaves of a distance near 0 is rounding.
            gap = (rows[:, None] - table[at]).square().sum(2)
            gap, order = (gap / 2 if cosine else gap.sqrt()).sort(stable=True)
            if cosine:  # a vector of zeros is orthogonal to all
                gap[own.norm(dim=1) == 0] = 1.0
            found.append(self.tokens[at.gather(1, order).cpu()])
            distances.append(gap.cpu())
        return torch.cat(found), torch.cat(distances)


# The bytes by the letters in which byte-level BPE (Radford et al. 2019) writes them.
_BYTES: dict[str, int] = {letter: byte for byte, letter in bytes_to_unicode().items()}


def _spell(piece: str) -> str:
    """The text of a byte-level piece, or its bytes where they are a part of a character."""
    if not all(letter in _BYTES for letter in piece):  # added as text
        return piece
    data = bytes(_BYTES[letter] for letter in piece)
    try:
        return data.decode()
    except UnicodeDecodeError:  # half an emoji
        return f"<{data.hex(' ').upper()}>"
