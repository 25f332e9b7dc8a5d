"""`cocoop`: a context that a small network moves for each image.

Flows in: images (B, e) and C classes. Flows out: scores (B, C) by prompts of each image's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from trainables.adapters.base import Adapter, Classifier, Needs
from trainables.adapters.shared import (
    COOP_OPTIM,
    Tiles,
    check_context,
    conditional,
    context,
    meta_network,
)
from trainables.config import Task, TrainConfig, Value
from trainables.data.batches import Tokens
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Prompt


@dataclass(frozen=True)
class CoCoopConfig:
    """The length of the context, and the words that it starts from.

    >>> CoCoopConfig(n_ctx=8, init="random")
    CoCoopConfig(n_ctx=8, init='random', init_std=0.02)
    """

    n_ctx: int = 4  # M
    init: str = "a photo of a"  # or "random"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        check_context(self.n_ctx, self.init, self.init_std)


class CoCoop(Adapter[CoCoopConfig]):
    """v_m(x) = v_m + pi(x), with pi = W2 relu(W1 f) of the normalised image feature f.

    CoCoOp: Zhou et al. 2022, arXiv:2203.05557. W1 (e/16, e), W2 (d, e/16). Every image has class
    prompts of its own: B x C of them, which share SOS and the context of their image.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("cocoop"), backbone, train)
    >>> adapter.vectors.shape  # (M, d)
    torch.Size([4, 32])
    """

    Config: ClassVar[type[CoCoopConfig]] = CoCoopConfig
    NEEDS: ClassVar[Needs] = "the text tower"
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            **COOP_OPTIM,
            "batch_size": 1,
            "epochs": 10,
        }
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        own = self.config
        self.vectors = nn.Parameter(context(backbone, own.n_ctx, own.init, own.init_std))  # (M, d)
        self.meta = meta_network(backbone)
        self.tiles = Tiles()

    @property
    def added_tokens(self) -> int:
        return self.config.n_ctx

    @property
    def class_words(self) -> str:
        return "{}."

    @property
    def prompt(self) -> Prompt | None:
        """The context as it is learned, moved by no image."""
        return Prompt(self.vectors)

    @property
    def moves_prompt(self) -> bool:
        return True

    def set_prompt(self, vectors: Tensor) -> None:
        self.vectors = nn.Parameter(vectors)

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        del text_embeds

        def contexts(images: Tensor) -> Tensor:
            moved: Tensor = self.vectors + self.meta(images)[:, None]  # (B, M, d)
            return moved

        return conditional(self.backbone, self.tiles, tokens, contexts)
