"""The image tower in two halves: a frozen one below, and one above that an adapter may change.

Flows in: pixels, uint8 (B, 3, R, R). Flows out: hidden states between two blocks, (B, S, w), and
from them one row an image in the joint space, (B, e). The split lets the frozen half's states be
computed once for a whole search. Like the text tower's, both halves call the model's own modules,
so injected modules (PEFT's) take part.

CLIP reads its embedding from the CLS token alone, so its last block is evaluated for that row only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.errors import ConfigError, DataError
from trainables.models import dual
from trainables.models.backbone import Backbone


def embed_images(backbone: Backbone, pixels: Tensor) -> Tensor:
    """uint8 (B, 3, R, R) to the joint space, not normalised: (B, e). Differentiable in the modules
    that an adapter injected into an `isolated` copy; the frozen weights themselves have no
    gradient."""
    if backbone.kind == "dual":
        return dual.embed_images(backbone, pixels)
    return upper(backbone, lower(backbone, pixels, 0), 0)


def frozen_embeds(backbone: Backbone, pixels: Tensor) -> Tensor:
    """`embed_images` as a feature store holds it: (B, e) fp32 on the CPU."""
    with backbone.frozen():
        return embed_images(backbone, pixels).float().cpu()


def depth(backbone: Backbone) -> int:
    """Blocks of the image tower. Raises `ConfigError` where they are not CLIP's or SigLIP's."""
    own_towers(backbone)
    return len(backbone.model.vision_model.encoder.layers)


def own_towers(backbone: Backbone) -> None:
    """Raise `ConfigError` unless the towers are CLIP's or SigLIP's, which methods that change a
    tower from inside know."""
    if backbone.kind == "dual":
        raise ConfigError(
            f"`{backbone.name}`: this adapter works inside CLIP's or SigLIP's own towers, got "
            f"{type(backbone.model).__name__}. Adapters of finished embeddings, and prompts at "
            "the input, work with it."
        )


def lower(backbone: Backbone, pixels: Tensor, block: int) -> Tensor:
    """uint8 (B, 3, R, R) to the states before block `block`: (B, S, w), S with CLIP's CLS."""
    if len(pixels) == 0:
        raise DataError("a batch must hold at least 1 image, got 0.")
    return states(backbone, backbone.preprocess.normalise(pixels.to(backbone.device)), block)


def states(backbone: Backbone, values: Tensor, block: int) -> Tensor:
    """`lower` of normalised pixels (B, 3, R, R)."""
    model = backbone.model.vision_model
    hidden: Tensor = model.embeddings(values)
    if backbone.kind == "clip":
        hidden = model.pre_layrnorm(hidden)
    for one in model.encoder.layers[: _checked(backbone, block)]:
        hidden = one(hidden, None)
    return hidden


def upper(backbone: Backbone, hidden: Tensor, block: int, prompts: Tensor | None = None) -> Tensor:
    """The states before block `block` to the joint space, not normalised: (B, S, w) to (B, e).

    `prompts` (J, P, w), with block 0: the first P vectors stand behind the patches, the others take
    their places again before blocks 1 to J - 1 (VPT-deep, Jia et al. 2022).
    """
    model = backbone.model.vision_model
    blocks = model.encoder.layers[_checked(backbone, block) :]
    rows = hidden.shape[1]
    if prompts is not None:
        hidden = _behind(hidden, _before_block_0(backbone, block, prompts))
    for number, one in enumerate(blocks):
        if prompts is not None and 0 < number < len(prompts):
            hidden = _behind(hidden[:, :rows], prompts[number])
        if backbone.kind == "clip" and one is blocks[-1]:
            hidden = _first_row(one, hidden)[:, None]
        else:
            hidden = one(hidden, None)
    embeds: Tensor
    if backbone.kind == "siglip":  # its head looks at all patches, and knows no prompts
        embeds = model.head(model.post_layernorm(hidden[:, :rows]))
    else:
        embeds = backbone.model.visual_projection(model.post_layernorm(hidden[:, 0]))
    return embeds


def _before_block_0(backbone: Backbone, block: int, prompts: Tensor) -> Tensor:
    """The first vectors as block 0 reads them: CLIP normalises its embeddings there, so the vectors
    are normalised too."""
    if block or not 1 <= len(prompts) <= depth(backbone):
        raise ConfigError(
            f"prompts of the image tower must start before block 0 and be for 1 to "
            f"{depth(backbone)} blocks, got {len(prompts)} before block {block}."
        )
    first: Tensor = prompts[0]
    if backbone.kind == "clip":
        first = backbone.model.vision_model.pre_layrnorm(first)
    return first


def _behind(hidden: Tensor, vectors: Tensor) -> Tensor:
    """`vectors` (P, w) behind the rows of every image: (B, S, w) to (B, S + P, w)."""
    return torch.cat([hidden, vectors.expand(hidden.shape[0], -1, -1)], 1)


def _first_row(block: Any, hidden: Tensor) -> Tensor:
    """Row 0 of a block's output: (B, S, w) to (B, w). It attends to all rows."""
    attention = block.self_attn
    normed = block.layer_norm1(hidden)
    queries, keys, values = (
        project(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (B, h, S, w / h)
        for project, x in (
            (attention.q_proj, normed[:, :1]),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    first = hidden[:, 0] + attention.out_proj(mixed)[:, 0]
    out: Tensor = first + block.mlp(block.layer_norm2(first))
    return out


def _checked(backbone: Backbone, block: int) -> int:
    if not 0 <= block <= depth(backbone):
        raise ConfigError(
            f"the image tower has {depth(backbone)} blocks: it can be cut before block 0 to "
            f"{depth(backbone)}, got {block}."
        )
    return block
