"""The image tower in two halves: what stays frozen below, and what an adapter may change above.

Flows in: pixels. Flows out: hidden states between two blocks, and from them one row an image in the
joint space. The split lets the frozen half's states be computed once for a whole search. Like the
text tower's, both halves call the model's own modules, so injected ones (PEFT's) take part.

CLIP reads its embedding from the CLS token alone, so its last block is evaluated for that row only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from trainables.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trainables.backbone import Backbone


def depth(backbone: Backbone) -> int:
    """Blocks of the image tower."""
    return len(backbone.model.vision_model.encoder.layers)


def lower(backbone: Backbone, pixels: Tensor, block: int) -> Tensor:
    """uint8 (B, 3, R, R) to the states before block `block`: (B, S, w), S with CLIP's CLS."""
    if len(pixels) == 0:
        raise DataError("a batch must hold at least 1 image, got 0.")
    model = backbone.model.vision_model
    hidden: Tensor = model.embeddings(backbone.preprocess.normalise(pixels.to(backbone.device)))
    if backbone.kind == "clip":
        hidden = model.pre_layrnorm(hidden)
    for one in model.encoder.layers[: _checked(backbone, block)]:
        hidden = one(hidden, None)
    return hidden


def upper(backbone: Backbone, hidden: Tensor, block: int) -> Tensor:
    """The states before block `block` to the joint space, not normalised: (B, S, w) to (B, e)."""
    model = backbone.model.vision_model
    blocks = model.encoder.layers[_checked(backbone, block) :]
    embeds: Tensor
    if backbone.kind == "siglip":  # its head looks at all patches
        for one in blocks:
            hidden = one(hidden, None)
        embeds = model.head(model.post_layernorm(hidden))
        return embeds
    for one in blocks[:-1]:
        hidden = one(hidden, None)
    first = _first_row(blocks[-1], hidden) if len(blocks) else hidden[:, 0]
    embeds = backbone.model.visual_projection(model.post_layernorm(first))
    return embeds


def _first_row(block: Any, hidden: Tensor) -> Tensor:
    """Row 0 of a block's output: (B, S, w) to (B, w). Its keys and values are of all rows."""
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
