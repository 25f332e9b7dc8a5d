"""`clip_adapter`: a bottleneck behind the frozen image tower.

Flows in: image features (B, e). Flows out: mixed features (B, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from trainables.adapters.base import Adapter
from trainables.adapters.shared import COOP_OPTIM
from trainables.config import Task, TrainConfig, Value, check
from trainables.models.backbone import Backbone


@dataclass(frozen=True)
class ClipAdapterConfig:
    """The width of the bottleneck and its weight in the mixture.

    >>> ClipAdapterConfig(reduction=8)
    ClipAdapterConfig(reduction=8, ratio=0.2)
    """

    reduction: int = 4  # its width is e / reduction
    ratio: float = 0.2  # of what it makes in the mixture

    def __post_init__(self) -> None:
        check(self.reduction >= 1, "adapter.reduction", "at least 1", self.reduction)
        check(0 < self.ratio <= 1, "adapter.ratio", "in (0, 1]", self.ratio)


class ClipAdapter(Adapter[ClipAdapterConfig]):
    """f' = ratio A(f) + (1 - ratio) f with A(f) = relu(W2 relu(W1 f)), on the frozen feature f.

    CLIP-Adapter: Gao et al. 2021, arXiv:2110.04544, the visual one of its two. W1 (e/4, e),
    W2 (e, e/4), without biases. The text is zero-shot's.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("clip_adapter"), backbone, train)
    >>> [tuple(p.shape) for p in adapter.parameters()]  # W1 and W2
    [(4, 16), (16, 4)]
    """

    Config: ClassVar[type[ClipAdapterConfig]] = ClipAdapterConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            **COOP_OPTIM,
            "batch_size": 32,
            "epochs": 200,
        }
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        wide, narrow = backbone.embed_dim, max(1, backbone.embed_dim // self.config.reduction)
        self.bottleneck = nn.Sequential(
            nn.Linear(wide, narrow, bias=False),
            nn.ReLU(),
            nn.Linear(narrow, wide, bias=False),
            nn.ReLU(),
        )

    def turned(
        self, start: Mapping[str, Tensor], learned: Mapping[str, Tensor], share: float
    ) -> dict[str, Tensor]:
        """A(f) times `share`: as relu is homogeneous, W2 times `share` gives it. At 0 the adapter
        is zero-shot."""
        del start
        last = "bottleneck.2.weight"
        return dict(learned) | {last: learned[last] * share}

    @property
    def frozen_text(self) -> bool:
        return True

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        del hidden
        ratio = self.config.ratio
        mixed: Tensor = ratio * self.bottleneck(image_embeds) + (1 - ratio) * image_embeds
        return mixed
