"""The text tower on embeddings: the one function through which all text is encoded.

Flows in: ragged token ids, and optionally prompt vectors to insert among them. Flows out: one row a
caption in the joint space, (N, e), differentiable in the prompt and in modules that were injected
into the tower. The model's own modules are called, so injected modules (PEFT's) take part.

Nodes are computed, not padded rows. CLIP's tower is causal: the state at a position depends on the
tokens up to it alone, so captions that begin alike share those positions. All captions form a trie,
and each of its nodes goes through the tower once: a prompt in front of every caption once, `a photo
of a` once, a caption that stands there twice once. The last block is evaluated for the EOTs alone.
All of this is exact, gradients too. SigLIP's tower attends in both directions and is padded to L,
as trained; for SigLIP the nodes are all positions of all captions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.data.batches import Tokens
from trainables.errors import ConfigError, DataError
from trainables.models.backbone import Backbone
from trainables.models.dual import embed_captions
from trainables.models.text_plan import Form, Layout, Prompt, check, plan

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys and values


def embed_text(
    backbone: Backbone, tokens: Tokens, prompt: Prompt | None = None, share: bool = True
) -> Tensor:
    """Captions to the joint space, not normalised: (N, e).

    Captions that the prompt leaves no room for are cut, their EOT is kept; `fit` counts them.
    Without `share`, each caption has nodes of its own: for dropout, which draws for each node.
    """
    if prompt is not None and not prompt.length:  # its last vector was taken out
        prompt = None
    if backbone.kind == "embeddings":
        if prompt is not None:
            raise DataError("a prompt needs a text tower, and here are finished embeddings alone.")
        embeds: Tensor = backbone.model(tokens)
        return embeds
    if backbone.kind == "dual":
        check(backbone, tokens, 0 if prompt is None else prompt.length)
        return embed_captions(backbone, tokens, prompt)
    how = plan(backbone, tokens, Form.of(backbone, tokens, prompt, share))
    rows = torch.cat([_embed(backbone, layout, prompt) for layout in how.layouts])
    return F.embedding(how.row, rows)


def _embed(backbone: Backbone, layout: Layout, prompt: Prompt | None) -> Tensor:
    """The rows of a layout: (U, e)."""
    model = backbone.model.text_model
    hidden, slot = _first(backbone, layout, prompt)  # (T, d), (T,)
    deep = prompt.deep if prompt is not None else None
    *blocks, final = model.encoder.layers
    if deep is not None and len(deep) > len(blocks):
        raise ConfigError(
            f"a deep prompt must have fewer than {len(blocks) + 1} layers, the tower's blocks "
            f"without the first, got {len(deep)}."
        )
    how = backbone.model.config.text_config.num_attention_heads, backbone.kind == "clip"
    every, last = layout.attention.attention(*how), layout.last.attention(*how)
    with _kernel(hidden.device):
        for number, block in enumerate([*blocks, final]):
            if deep is not None and 1 <= number <= len(deep):
                again = F.embedding(slot.clamp(min=0), deep[number - 1])  # (T, d)
                hidden = torch.where((slot >= 0)[:, None], again, hidden)
            if block is not final:
                hidden = through(block, hidden, every)
        hidden = through(final, hidden, last, layout.ends)  # (U, d)
    hidden = model.final_layer_norm(hidden)
    clip = backbone.kind == "clip"
    embeds: Tensor = backbone.model.text_projection(hidden) if clip else model.head(hidden)
    return embeds


def through(block: Any, hidden: Tensor, attention: Attend, rows: Tensor | None = None) -> Tensor:
    """A transformer block on packed nodes (T, d), or padded ones, evaluated for `rows` alone if
    given."""
    normed, projections = block.layer_norm1(hidden), block.self_attn
    queries = normed if rows is None else F.embedding(rows, normed)
    hidden = hidden if rows is None else F.embedding(rows, hidden)
    mixed = attention(
        projections.q_proj(queries), projections.k_proj(normed), projections.v_proj(normed)
    )
    hidden = hidden + projections.out_proj(mixed)
    changed: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
    return changed


def _first(backbone: Backbone, layout: Layout, prompt: Prompt | None) -> tuple[Tensor, Tensor]:
    """The states before block 0, (T, d), and which prompt vector each node is (-1: none), (T,)."""
    embeddings = backbone.model.text_model.embeddings
    vocabulary = backbone.model.config.text_config.vocab_size
    slot = layout.content - vocabulary
    words = embeddings.token_embedding(torch.where(slot < 0, layout.content, 0))
    if prompt is not None:
        vectors = prompt.vectors.flatten(0, -2).to(words.dtype)
        words = torch.where((slot >= 0)[:, None], F.embedding(slot.clamp(min=0), vectors), words)
        slot = torch.where(slot >= 0, slot % prompt.length, -1)
    return words + embeddings.position_embedding(layout.position), slot


def _kernel(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The attention kernel. On a CPU the fused one's backward is slow for rows this short."""
    if device.type == "cpu" and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


def word_vectors(backbone: Backbone, text: str) -> Tensor:
    """The embedding rows of the words of `text`, without special tokens: (n, d), a copy."""
    ids = backbone.tokenize([text])[0].ids[:-1]
    if backbone.start_token is not None:
        ids = ids[1:]
    weight = backbone.word_matrix
    return weight[ids.to(weight.device)].clone()
