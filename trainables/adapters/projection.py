"""`projection`: a linear map on the joint space of each tower, the linear probe of retrieval.

Flows in: embeddings (B, e). Flows out: embeddings (B, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Adapter
from trainables.config import Task, TrainConfig, Value
from trainables.data.batches import Tokens
from trainables.models.backbone import Backbone
from trainables.models.text_tower import embed_text


@dataclass(frozen=True)
class ProjectionConfig:
    """Which towers have a map, and whether it has a bias.

    >>> ProjectionConfig(side="text")
    ProjectionConfig(side='text', bias=False)
    """

    side: Literal["both", "image", "text"] = "both"
    bias: bool = False


class Projection(Adapter[ProjectionConfig]):
    """y = x + W x (+ b), for x of unit length, with one (e, e) matrix W a tower that starts at 0.

    Step 0 is zero-shot, and weight decay pulls back to it. Linear probes of CLIP: Radford et al.
    2021. Retrained projection heads have no published recipe: these settings are ours.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("projection"), backbone, pairs)
    >>> {side: tuple(head.weight.shape) for side, head in adapter.heads.items()}
    {'image': (16, 16), 'text': (16, 16)}
    """

    Config: ClassVar[type[ProjectionConfig]] = ProjectionConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "retrieval": {"optim.lr": 1e-4, "optim.schedule": "cosine", "batch_size": 128},
        "classification": {
            "optim.lr": 1e-3,
            "optim.schedule": "cosine",
            "batch_size": 32,
            "epochs": 50,
        },
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        sides = ("image", "text") if self.config.side == "both" else (self.config.side,)
        self.heads = nn.ModuleDict(
            {
                side: nn.Linear(backbone.embed_dim, backbone.embed_dim, self.config.bias)
                for side in sides
            }
        )
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    @property
    def frozen_text(self) -> bool:
        return True

    def _project(self, side: str, embeds: Tensor) -> Tensor:
        if side not in self.heads:
            return embeds
        unit = F.normalize(embeds, dim=-1)
        projected: Tensor = unit + self.heads[side](unit)
        return projected

    def embed_text(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        if text_embeds is None:
            text_embeds = embed_text(self.backbone, tokens)
        return self._project("text", text_embeds)

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        del hidden
        return self._project("image", image_embeds)
