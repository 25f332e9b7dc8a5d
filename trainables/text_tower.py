"""The text tower on embeddings: the one function through which all text is encoded.

Flows in: ragged token ids, and optionally prompt vectors to insert among them. Flows out: one row a
caption in the joint space, differentiable in the prompt and in whatever was injected into the
tower's modules. It calls the model's own modules, so injected ones (PEFT's) take part.

CLIP's tower is causal: what follows the EOT cannot change it, so captions are padded only to the
longest of those encoded together, exactly. SigLIP's tower sees everything and is padded to L, as
trained.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.backbone import Backbone
from trainables.data import Tokens
from trainables.errors import ConfigError

# On a CPU, captions of like length are encoded together, so that little of it is padding: a step is
# 1.2 to 1.5 times faster with 32 captions, 1.8 to 2.6 with 256. A GPU prefers one large call.
ROWS_A_PART, MOST_PARTS = 8, 8
Place = Literal["after_sos", "before_eot", "front"]


@dataclass(frozen=True)
class Prompt:
    """Vectors to insert into every caption as if they were word embeddings.

    `deep`: vectors that take the prompt's places again before blocks 1 to D (block 0 is the first),
    as in deep prompting (VPT-deep, Jia et al. 2022; MaPLe, Khattak et al. 2023).
    SigLIP has no SOS: `after_sos` and `front` are one place there.
    """

    vectors: Tensor  # (P, d), or (N, P, d) where each caption has its own
    place: Place = "after_sos"
    deep: Tensor | None = None  # (D, P, d)

    @property
    def length(self) -> int:
        return self.vectors.shape[-2]

    def select(self, rows: Tensor) -> Prompt:
        """The prompt of captions `rows`."""
        if self.vectors.ndim == 2:
            return self
        return replace(self, vectors=self.vectors[rows])


def embed_text(backbone: Backbone, tokens: Tokens, prompt: Prompt | None = None) -> Tensor:
    """Captions to the joint space, not normalised: (N, e).

    Captions that the prompt leaves no room for are cut, their EOT is kept; `fit` counts them.
    """
    if len(tokens) == 0:
        return torch.zeros(0, backbone.embed_dim, device=backbone.device)
    tokens = tokens.to(backbone.device)
    if prompt is not None:
        tokens, _ = fit(backbone, tokens, prompt.length)
    parts = len(tokens) // ROWS_A_PART if backbone.kind == "clip" and tokens.ids.is_cpu else 1
    if parts <= 1:
        return _embed(backbone, tokens, prompt)
    order = tokens.lengths.argsort(stable=True)
    done = [
        _embed(backbone, tokens.select(rows), None if prompt is None else prompt.select(rows))
        for rows in order.chunk(min(parts, MOST_PARTS))
    ]
    return torch.cat(done)[order.argsort()]


def _embed(backbone: Backbone, tokens: Tokens, prompt: Prompt | None) -> Tensor:
    """Captions that fit, padded to the longest of them."""
    index, slot = _layout(backbone, tokens, prompt)
    model = backbone.model.text_model
    hidden = _table(backbone, tokens, prompt)[index]  # (N, W, d)
    hidden = hidden + model.embeddings.position_embedding.weight[: index.shape[1]]
    deep = prompt.deep if prompt is not None else None
    blocks = model.encoder.layers
    if deep is not None and len(deep) >= len(blocks):
        raise ConfigError(
            f"a deep prompt must have fewer than {len(blocks)} layers, the tower's blocks without "
            f"the first, got {len(deep)}."
        )
    causal = backbone.kind == "clip"
    with _attention(hidden.device):
        for number, block in enumerate(blocks):
            if deep is not None and 1 <= number <= len(deep):
                again = deep[number - 1][slot.clamp(min=0)]  # (N, W, d)
                hidden = torch.where((slot >= 0)[..., None], again, hidden)
            hidden = block(hidden, None, is_causal=causal)
    if not causal:
        return model.head(model.final_layer_norm(hidden[:, -1]))
    added = 0 if prompt is None else prompt.length
    last = hidden[torch.arange(len(tokens), device=hidden.device), tokens.lengths + added - 1]
    return backbone.model.text_projection(model.final_layer_norm(last))


def _attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The attention kernel. On a CPU the fused one's backward is slow for rows this short: a whole
    training step took 1.6 times as long with it."""
    if device.type == "cpu" and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


def fit(backbone: Backbone, tokens: Tokens, added: int) -> tuple[Tokens, int]:
    """Captions cut so that `added` more vectors fit into L, EOT kept; and how many were cut."""
    special = 1 if backbone.start_token is None else 2
    limit = backbone.context_length - added
    if limit < special + 1:
        raise ConfigError(
            f"a prompt of {added} vectors leaves no room for a word: the text tower has "
            f"{backbone.context_length} positions, and {special} are for special tokens, so it "
            f"must be at most {backbone.context_length - special - 1}."
        )
    lengths = tokens.lengths
    cut = int((lengths > limit).sum())
    if cut == 0:
        return tokens, 0
    kept = lengths.clamp(max=limit)
    offsets = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    within = torch.arange(int(offsets[-1]), device=kept.device) - offsets[:-1].repeat_interleave(
        kept
    )
    ids = tokens.ids[tokens.offsets[:-1].repeat_interleave(kept) + within]
    ids[offsets[1:] - 1] = tokens.ids[tokens.offsets[1:] - 1]
    return Tokens(ids, offsets), cut


def word_vectors(backbone: Backbone, text: str) -> Tensor:
    """The embedding rows of the words of `text`, without special tokens: (n, d), a copy."""
    ids = backbone.tokenize([text])[0].ids[:-1]
    if backbone.start_token is not None:
        ids = ids[1:]
    weight: Tensor = backbone.model.text_model.embeddings.token_embedding.weight
    return weight.detach()[ids.to(weight.device)].clone()


def _table(backbone: Backbone, tokens: Tokens, prompt: Prompt | None) -> Tensor:
    """All vectors that `_layout` points into: T words, the prompt's, one for padding. (rows, d)"""
    embedding = backbone.model.text_model.embeddings.token_embedding
    rows = [embedding(tokens.ids)]
    if prompt is not None:
        rows.append(prompt.vectors.flatten(0, -2).to(rows[0].dtype))
    rows.append(embedding(tokens.ids.new_tensor([backbone.pad_token])))
    return torch.cat(rows)


def _layout(backbone: Backbone, tokens: Tokens, prompt: Prompt | None) -> tuple[Tensor, Tensor]:
    """Which row of `_table` stands at each position, and which prompt vector (-1: none): (N, W)."""
    lengths, words = tokens.lengths[:, None], len(tokens.ids)
    added = 0 if prompt is None else prompt.length
    width = int(lengths.max()) + added if backbone.kind == "clip" else backbone.context_length
    position = torch.arange(width, device=lengths.device).expand(len(tokens), -1)
    index = position + tokens.offsets[:-1, None]
    padding = words
    slot = torch.full_like(position, -1)
    if prompt is not None:
        start = _start(backbone, lengths, prompt.place)
        slot = torch.where((position >= start) & (position < start + added), position - start, slot)
        index = torch.where(position >= start + added, index - added, index)
        first = torch.zeros_like(lengths)
        if prompt.vectors.ndim == 3:  # each caption's own
            first = torch.arange(len(tokens), device=slot.device)[:, None] * added
        index = torch.where(slot >= 0, words + first + slot, index)
        padding = words + prompt.vectors.shape[:-1].numel()
    return torch.where(position < lengths + added, index, padding), slot


def _start(backbone: Backbone, lengths: Tensor, place: Place) -> Tensor:
    """The position of the first prompt vector in each caption: (N, 1)."""
    if place == "before_eot":
        return lengths - 1
    return torch.full_like(lengths, int(place == "after_sos" and backbone.start_token is not None))
