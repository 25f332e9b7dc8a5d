"""`zero_shot`: the frozen CLIP itself, with words around the captions: the baseline that others
must beat.

Flows in: images and captions. Flows out: embeddings (B, e) and (M, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.adapters.base import Adapter
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.models.backbone import Backbone
from trainables.models.text_tower import embed_text


@dataclass(frozen=True)
class ZeroShotConfig:
    """The words around a caption, `{}` in them; several such templates are separated by `|`.

    >>> ZeroShotConfig("a photo of {}.|{}")
    ZeroShotConfig(template='a photo of {}.|{}')
    """

    template: str = "{}"

    def __post_init__(self) -> None:
        for part in self.template.split("|"):
            before, hole, after = part.partition("{}")
            once = bool(hole) and "{}" not in after
            check(once, "adapter.template", "text with one `{}` in each part", part)
            # Ids are spliced, and BPE is separable at a word's end only.
            apart = not (before[-1:].isalnum() or after[:1].isalnum())
            check(apart, "adapter.template", "without a letter or digit beside `{}`", part)


class ZeroShot(Adapter[ZeroShotConfig]):
    """Nothing is trained: captions and images as the backbone embeds them (Radford et al. 2021).

    Several templates make an ensemble: the mean of their normalised embeddings. Captions come as
    token ids, so a template is tokenised once and spliced in: `[SOT, before, words, after, EOT]`,
    cut at the context's length with EOT kept. Tokenising the whole text gives the same ids, except
    where punctuation of caption and template meet: CLIP's BPE would join the two marks, here they
    stay two tokens.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("zero_shot", {"adapter.template": "a photo of {}."}), backbone)
    >>> adapter.embed_text(pairs.tokens).shape  # (M, e)
    torch.Size([48, 16])
    """

    Config: ClassVar[type[ZeroShotConfig]] = ZeroShotConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "retrieval": {"epochs": 0},
        "classification": {"epochs": 0},
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        templates = [part.split("{}") for part in self.config.template.split("|")]
        self.around = [(_words(backbone, a), _words(backbone, b)) for a, b in templates]

    @property
    def frozen_text(self) -> bool:
        return self.config.template == "{}"  # the frozen tower's own outputs then

    def embed_text(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        if self.frozen_text and text_embeds is not None:
            return text_embeds
        embeds = []
        for before, after in self.around:
            wrapped = wrap(self.backbone, tokens, before, after)
            embeds.append(F.normalize(embed_text(self.backbone, wrapped), dim=-1))
        return torch.stack(embeds).mean(0)  # (M, e)


def _words(backbone: Backbone, text: str) -> list[int]:
    """The ids of `text` without SOT and EOT."""
    ids: list[int] = backbone.tokenize([text])[0].ids.tolist()
    return ids[_starts(backbone) : -1]


def _starts(backbone: Backbone) -> int:
    """How many tokens stand before a caption's words: SigLIP has no SOT."""
    return int(backbone.start_token is not None)


def wrap(backbone: Backbone, tokens: Tokens, before: list[int], after: list[int]) -> Tokens:
    """Each caption with ids `before` and `after` around its words, cut to the context's length."""
    if not before and not after:
        return tokens
    first = _starts(backbone)
    ids: list[int] = tokens.ids.tolist()
    rows = []
    for start, end in pairwise(tokens.offsets.tolist()):
        words = [*before, *ids[start + first : end - 1], *after]
        rows.append([*ids[start : start + first], *words][: backbone.context_length - 1])
        rows[-1].append(ids[end - 1])
    offsets = [0, *accumulate(map(len, rows))]
    flat = [number for row in rows for number in row]
    return Tokens(tokens.ids.new_tensor(flat), tokens.offsets.new_tensor(offsets))
