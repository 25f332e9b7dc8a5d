"""Words that a user types, through an adapter.

Flows in: queries, or class names with their template. Flows out: embeddings, or checked `Classes`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.adapters.base import Adapter
from trainables.data.batches import Tokens
from trainables.errors import ConfigError
from trainables.features.classes import DEFAULT, Classes
from trainables.features.few_shot import check_template
from trainables.features.lazy_parts import embed_each_once
from trainables.training.predict import in_use


def embed_words(adapter: Adapter[Any], words: Sequence[str]) -> Tensor:
    """Captions of unit length in the joint space: (M, e) on the CPU."""
    backbone = adapter.backbone
    tokens, cut = backbone.tokenize(words)
    if cut:
        print(
            f"warning: {cut} of the queries have more than {backbone.context_length} tokens and "
            "are cut",
            file=sys.stderr,
        )
    frozen = embed_each_once(backbone, tokens).to(backbone.device) if adapter.frozen_text else None
    with in_use(adapter):
        return F.normalize(adapter.embed_text(tokens, frozen).float(), dim=-1).cpu()


def adapt_texts(adapter: Adapter[Any] | None, embeds: Tensor) -> Tensor:
    """Finished text embeddings (M, e) as the adapter changes them, of unit length; without one, as
    they are."""
    if adapter is None:
        return F.normalize(embeds, dim=-1)
    if not adapter.frozen_text:
        raise ConfigError(
            f"`{adapter.train_config.name}` changes words before their embeddings are made: give "
            "words instead of `--texts`."
        )
    ids = torch.zeros(len(embeds), dtype=torch.int64)  # nobody asks what the words were
    tokens = Tokens(ids, torch.arange(len(embeds) + 1))
    with in_use(adapter):
        changed = adapter.embed_text(tokens, embeds.to(adapter.backbone.device))
        return F.normalize(changed.float(), dim=-1).cpu()


def classes_of(names: Sequence[str], template: str) -> Classes:
    """Classes as `--classes` and `--template` give them."""
    if len(names) < 2:
        raise ConfigError(f"`--classes` must name at least 2 classes, got {len(names)}.")
    if any(not name.strip() for name in names):
        raise ConfigError("`--classes` must be words, got an empty one.")
    if len({name.casefold() for name in names}) < len(names):
        raise ConfigError(f"`--classes` must differ in more than case, got {', '.join(names)}.")
    check_template(template or DEFAULT)
    return Classes(tuple(names), template or DEFAULT)
