"""Prompt learning and LoRA on the text tower, forward and backward.

The baseline is what the methods' public code does, on transformers' own blocks: every caption and
every class prompt padded to 77 positions, all of them recomputed at each step; CoOp and CoCoOp
encode their images at each step as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.captions import EOT, captions, class_prompts
from benchmarks.harness import Case, Outputs, Row
from benchmarks.models import backbone, injected, normal, pictures
from benchmarks.steps import SCALE, contrast, step
from trainables.data.batches import Tokens
from trainables.models.image_tower import embed_images
from trainables.models.text_plan import Form, Plan, Prompt
from trainables.models.text_tower import embed_text


def padded(model: Any, tokens: Tokens, ctx: Tensor) -> Tensor:
    """CoOp's text encoder: `ctx` (P, d) or (N, P, d) after the SOT, padded to 77: (N, e)."""
    tower, (count, added) = model.text_model, (len(tokens), ctx.shape[-2])
    filler = model.config.text_config.pad_token_id  # after the EOT, so of no effect
    words = tower.embeddings.token_embedding(tokens.pad(filler, 77 - added))
    hidden = torch.cat([words[:, :1], ctx.expand(count, -1, -1), words[:, 1:]], 1)  # (N, 77, d)
    hidden = hidden + tower.embeddings.position_embedding.weight
    hidden = tower.encoder(inputs_embeds=hidden, is_causal=True).last_hidden_state
    ends = tower.final_layer_norm(hidden)[torch.arange(count), tokens.lengths - 1 + added]
    embeds: Tensor = model.text_projection(ends)
    return embeds


def context(count: int, width: int) -> Tensor:
    return normal(count, width, seed=1, scale=0.02).requires_grad_()


def drawn(tokens: Tokens) -> Tokens:
    """Captions as a step draws them: how to compute them is not known yet."""
    return Tokens(tokens.ids, tokens.offsets)


def prompted(tokens: Tokens, n_ctx: int) -> Case:
    """A soft prompt on `tokens`: text side alone, and the gradient of a linear function of it."""
    clip = backbone("B/32", vision_layers=1)
    ctx = context(n_ctx, clip.text_width)
    direction = normal(len(tokens), clip.embed_dim, seed=2)

    def run(embed: Callable[[], Tensor]) -> Outputs:
        embeds = embed()
        return step((embeds * direction).sum(), {"ctx": ctx}, embeds=embeds)

    return Case(
        lambda: run(lambda: padded(clip.model, tokens, ctx)),
        lambda: run(lambda: embed_text(clip, drawn(tokens), Prompt(ctx))),
    )


def coop() -> Case:
    """37 classes, 16 context vectors, 32 images: logits, cross-entropy, gradient."""
    clip, tokens = backbone("B/16"), class_prompts()
    ctx, pixels = context(16, clip.text_width), pictures(32)
    labels = torch.arange(32) % len(tokens)
    with torch.no_grad():
        cached = embed_images(clip, pixels)

    def run(images: Tensor, texts: Tensor) -> Outputs:
        logits = SCALE * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        return step(F.cross_entropy(logits, labels), {"ctx": ctx}, logits=logits)

    return Case(
        lambda: run(embed_images(clip, pixels), padded(clip.model, tokens, ctx)),
        lambda: run(cached, embed_text(clip, drawn(tokens), Prompt(ctx))),
    )


def cocoop() -> Case:
    """37 classes, 4 context vectors plus what a small network makes of the one image."""
    clip, tokens = backbone("B/16"), class_prompts()
    ctx, pixels = context(4, clip.text_width), pictures(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = clip.embed_dim // 16
        meta = nn.Sequential(
            nn.Linear(clip.embed_dim, width), nn.ReLU(), nn.Linear(width, clip.text_width)
        )
    trained = {"ctx": ctx, **dict(meta.named_parameters())}
    with torch.no_grad():
        cached = embed_images(clip, pixels)

    def run(images: Tensor, embed: Callable[[Tensor], Tensor]) -> Outputs:
        images = F.normalize(images, dim=-1)  # (1, e)
        texts = embed(ctx + meta(images))
        logits = SCALE * images @ F.normalize(texts, dim=-1).T  # (1, 37)
        return step(F.cross_entropy(logits, torch.zeros(1).long()), trained, logits=logits)

    return Case(
        lambda: run(
            embed_images(clip, pixels), lambda shifted: padded(clip.model, tokens, shifted)
        ),
        lambda: run(cached, lambda shifted: embed_text(clip, drawn(tokens), Prompt(shifted))),
    )


def lora() -> Case:
    """Queries and values of all 12 text blocks, 32 captions."""
    clip, tokens = backbone("B/32", vision_layers=1), captions(32)
    peft, trained = injected(clip, r"text_model\..*\.(q|v)_proj")
    images, ids = normal(32, clip.embed_dim, seed=2), tokens.pad(EOT, 77)

    def run(texts: Tensor) -> Outputs:
        loss, logits = contrast(images, texts)
        return step(loss, trained, logits=logits)

    return Case(
        lambda: run(peft.get_text_features(input_ids=ids).pooler_output),
        lambda: run(embed_text(clip, drawn(tokens))),
    )


def planned(count: int) -> Case:
    """Which captions share which nodes, for `count` of them: integers alone."""
    clip, tokens = backbone("B/32", vision_layers=1), captions(count)
    form = Form.of(clip, tokens, None, share=True)

    def plain() -> Outputs:
        rows, row = tokens.pad(-1).unique(dim=0, return_inverse=True)
        new = rows >= 0
        new[1:] &= (rows[1:] != rows[:-1]).cumsum(1) > 0
        position = torch.arange(rows.shape[1]).expand_as(rows)
        return _floats(rows[new], position[new], row)

    def ours() -> Outputs:
        plan = Plan.of(clip, drawn(tokens), form)
        (layout,) = plan.layouts
        return _floats(layout.content, layout.position, plan.row)

    return Case(plain, ours)


def _floats(content: Tensor, position: Tensor, row: Tensor) -> Outputs:
    return {
        name: tensor.double()
        for name, tensor in (("content", content), ("position", position), ("row", row))
    }


ROWS = (
    Row(
        "text/plan",
        "which of 1,024 captions share what, against torch's `unique`; ours: the whole plan",
        1.5,
        lambda: planned(1024),
    ),
    Row(
        "text/captions",
        "soft prompt, 16 ctx, 32 captions of real lengths, B/32 text tower",
        4.5,
        lambda: prompted(captions(32), 16),
    ),
    Row(
        "text/classes-16",
        "prompts of 37 classes, 16 ctx, B/32 text tower",
        14,
        lambda: prompted(class_prompts(), 16),
    ),
    Row(
        "text/classes-4",
        "prompts of 37 classes, 4 ctx, B/32 text tower",
        16,
        lambda: prompted(class_prompts(), 4),
    ),
    Row("text/coop", "CoOp step, 37 classes, 16 ctx, 32 images, B/16", 45, coop),
    Row("text/cocoop", "CoCoOp step, 37 classes, 4 ctx, 1 image, B/16", 16, cocoop),
    Row("text/lora", "LoRA r = 8 on q, v of all text blocks, 32 captions, B/32", 4.2, lora),
)
