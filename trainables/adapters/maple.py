"""`maple`: learned vectors in the text tower, mapped into the image tower.

Flows in: classes and pixels. Flows out: embeddings (C, e) and (B, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.adapters.base import Adapter, Needs
from trainables.adapters.shared import (
    COOP_OPTIM,
    check_context,
    check_length,
    deep_context,
    words_behind,
)
from trainables.config import Task, TrainConfig, Value, check
from trainables.models.backbone import Backbone
from trainables.models.image_tower import upper
from trainables.models.text_plan import Prompt


@dataclass(frozen=True)
class MapleConfig:
    """The vectors: how many, in how many blocks. Of the words "a photo of a", those behind the
    first M stay words.

    >>> MapleConfig(depth=3)
    MapleConfig(n_ctx=2, init='a photo of a', init_std=0.02, depth=3)
    """

    n_ctx: int = 2  # M
    init: str = "a photo of a"  # or "random"; other blocks' vectors are random in any case
    init_std: float = 0.02
    depth: int = 9  # J, blocks with vectors of their own; at most as many as both towers have

    def __post_init__(self) -> None:
        check_context(self.n_ctx, self.init, self.init_std)
        check(self.depth >= 1, "adapter.depth", "at least 1", self.depth)


class Maple(Adapter[MapleConfig]):
    """A class is `[SOS, v_1 .. v_M, "of a", name, ".", EOS]`, an image `[CLS, patches, F v]`.

    MaPLe: Khattak et al. 2023, arXiv:2210.03117. Each of the first J blocks of either tower reads M
    vectors in the same places: in the text tower v_j (M, d), in the image tower F_j v_j (M, dv),
    with a linear map F_j for each block, so both sides learn as one. Where a tower has fewer than J
    blocks, J is that number. A SigLIP's head looks at the patches alone.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("maple"), backbone, train)
    >>> adapter.vectors.shape  # (J, M, d), for towers of two blocks
    torch.Size([2, 2, 32])
    """

    Config: ClassVar[type[MapleConfig]] = MapleConfig
    NEEDS: ClassVar[Needs] = "both towers"
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            **COOP_OPTIM,
            "optim.lr": 3.5e-3,
            "batch_size": 4,
            "epochs": 5,
        }
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        own = self.config
        vectors = deep_context(backbone, own.depth, own.n_ctx, own.init, own.init_std)
        self.vectors = nn.Parameter(vectors)  # (J, M, d)
        width = backbone.model.config.vision_config.hidden_size
        self.maps = nn.ModuleList(nn.Linear(backbone.text_width, width) for _ in vectors)

    @property
    def image_block(self) -> int | None:
        return 0

    @property
    def added_tokens(self) -> int:
        return self.config.n_ctx

    @property
    def class_words(self) -> str:
        return words_behind(self.config.n_ctx)

    @property
    def prompt(self) -> Prompt | None:
        return Prompt(self.vectors[0], deep=self.vectors[1:])

    def set_prompt(self, vectors: Tensor) -> None:
        """The image tower reads what the maps make of the new vectors."""
        check_length(vectors, self.config.n_ctx, len(self.vectors) - 1)
        self.vectors = nn.Parameter(torch.cat([vectors[None], self.vectors[1:]]))

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        del image_embeds
        assert hidden is not None
        pairs = zip(self.maps, self.vectors, strict=True)
        prompts = torch.stack([linear(vectors) for linear, vectors in pairs])  # (J, M, dv)
        return upper(self.backbone, hidden, 0, prompts)
