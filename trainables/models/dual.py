"""Two towers of any architecture behind one projection each: transformers' dual encoder.

Flows in: pixels; ragged token ids, with a prompt where the text tower takes vectors in the place of
words. Flows out: rows in the joint space. Both towers are run whole, padded as transformers pads:
this module knows nothing of their blocks.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.data.batches import Tokens
from trainables.errors import ConfigError
from trainables.models.backbone import Backbone
from trainables.models.text_plan import ROWS_A_PASS, Form, Prompt, contents, fit


def embed_images(backbone: Backbone, pixels: Tensor) -> Tensor:
    """uint8 (B, 3, R, R) to the joint space, not normalised: (B, e)."""
    values = backbone.preprocess.normalise(pixels.to(backbone.device))
    embeds: Tensor = backbone.model.get_image_features(pixel_values=values).pooler_output
    return embeds


def embed_captions(backbone: Backbone, tokens: Tokens, prompt: Prompt | None) -> Tensor:
    """Captions to the joint space, not normalised: (N, e)."""
    form = Form.of(backbone, tokens, prompt, share=False)
    if prompt is not None:
        _check_prompt(backbone, prompt)
        tokens, _ = fit(backbone, tokens, prompt.length)
    content = torch.from_numpy(contents(backbone, tokens, form)).long().to(backbone.device)
    each = len(content) if torch.is_grad_enabled() else ROWS_A_PASS
    rows = [_embed(backbone, part, prompt) for part in content.split(each)]
    return torch.cat(rows)


def _embed(backbone: Backbone, content: Tensor, prompt: Prompt | None) -> Tensor:
    """Rows of `contents` (n, W) to (n, e)."""
    model, real = backbone.model, content >= 0
    if prompt is None:
        given = {"input_ids": content.masked_fill(~real, backbone.pad_token)}
    else:
        slot = content - model.config.text_config.vocab_size  # of a vector among all prompts'
        ids = torch.where((slot < 0) & real, content, backbone.pad_token)
        vectors = F.embedding(slot.clamp(min=0), prompt.vectors.flatten(0, -2))
        words = model.text_model.get_input_embeddings()(ids)
        mixed = torch.where((slot >= 0)[..., None], vectors.to(words.dtype), words)
        given = {"inputs_embeds": mixed}
    out = model.text_model(**given, attention_mask=real.long())
    embeds: Tensor = model.text_projection(out.pooler_output)
    return embeds


def _check_prompt(backbone: Backbone, prompt: Prompt) -> None:
    tower = backbone.model.text_model
    if "inputs_embeds" not in inspect.signature(tower.forward).parameters:
        raise ConfigError(
            f"`{backbone.name}`: prompts need a text tower that takes vectors in the place of "
            f"words, its {type(tower).__name__} takes ids alone. Adapters of finished embeddings "
            "work with it."
        )
    if prompt.deep is not None and len(prompt.deep):
        raise ConfigError(
            f"`{backbone.name}`: deep prompts need CLIP's or SigLIP's own text tower, got "
            f"{type(tower).__name__}."
        )


def positions(model: Any, tokenizer: Any) -> int:
    """How many tokens the text tower takes. RoBERTa and its kin count positions from behind the
    number of the padding token, so they take fewer by that number."""
    text = model.config.text_config
    embeddings = getattr(model.text_model, "embeddings", None)
    offset = hasattr(embeddings, "create_position_ids_from_input_ids")
    room: int = text.max_position_embeddings - (text.pad_token_id + 1 if offset else 0)
    return min(room, tokenizer.model_max_length)


def ends(tokenizer: Any, name: str) -> tuple[int | None, int]:
    """The tokens that stand around every text: the first, if there is one, and the last."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    before, after = whole.index(bare[0]), len(whole)
    after -= whole.index(bare[0]) + len(bare)
    if before > 1 or after != 1:
        raise ConfigError(
            f"`{name}`: its tokenizer must put one token behind a text and at most one in front, "
            f"got {after} and {before}."
        )
    return (whole[0] if before else None), whole[-1]
