"""`prolip`: the image tower's last projection alone, held near where it was.

Flows in: image features. Flows out: embeddings (B, e).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.adapters.base import Adapter, Needs, product
from trainables.adapters.shared import load_model, write_model
from trainables.config import Task, TrainConfig, Value, check
from trainables.errors import ConfigError
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.models.image_tower import depth

EPS = 1e-4  # of Adam
IMAGES = 256  # through the tower's end at a time


@dataclass(frozen=True)
class ProlipConfig:
    """Which map is trained, and for how many steps.

    >>> ProlipConfig(place="projection")
    ProlipConfig(place='projection', lr=1e-05, steps=300)
    """

    place: Literal["embedding", "projection"] = "embedding"  # "projection" needs pixels
    lr: float = 1e-5
    steps: int = 300

    def __post_init__(self) -> None:
        check(self.lr > 0, "adapter.lr", "above 0", self.lr)
        check(self.steps >= 1, "adapter.steps", "at least 1", self.steps)


class Prolip(Adapter[ProlipConfig]):
    """Images W x, compared with zero-shot's texts; W held near where it started, W0.

    ProLIP: Fahes et al. 2024, arXiv:2410.05270. With `place="projection"`, W (e, w) is the tower's
    projection and x the tower's feature before it. With `"embedding"`, W (e, e) starts as the
    identity and x is the finished embedding; the paper calls this a regularised linear adapter.
    Full-batch Adam on the cross-entropy plus lambda |W - W0|^2 with lambda = 1 / shots, the paper's
    value where there is no val.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("prolip"), backbone, train)
    >>> adapter.weight.shape  # (e, e)
    torch.Size([16, 16])
    """

    Config: ClassVar[type[ProlipConfig]] = ProlipConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {"classification": {"epochs": 0}}

    weight: Tensor  # (e, e) or (e, w)

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.shown: SplitFeatures | None = None  # what it is fitted to
        if self.config.place == "embedding":
            self.register_buffer("weight", torch.eye(backbone.embed_dim))
        elif backbone.kind != "clip":
            raise ConfigError(
                '`adapter.place` must be "embedding" with a SigLIP, whose tower ends without a '
                f"projection, got {self.config.place!r}."
            )
        else:
            projection = backbone.model.visual_projection.weight
            self.register_buffer("weight", projection.detach().cpu().clone())

    @classmethod
    def needs(cls, config: TrainConfig) -> Needs:
        return "embeddings" if config.adapter.place == "embedding" else "both towers"

    def prepare(self, train: SplitFeatures) -> None:
        self.shown = train

    @property
    def image_block(self) -> int | None:
        return depth(self.backbone) if self.config.place == "projection" else None

    @property
    def frozen_text(self) -> bool:
        return True

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        return product(self._before(image_embeds, hidden), self.weight.T)

    def _before(self, image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
        """The x that W maps: (B, e) or (B, w)."""
        if hidden is None:
            return F.normalize(image_embeds.float(), dim=-1)
        found: Tensor = self.backbone.model.vision_model.post_layernorm(hidden[:, 0])
        return found

    @torch.no_grad()
    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        """Fit W. Nothing is chosen on val."""
        del epoch, val
        data = self.shown
        assert data is not None
        assert data.labels is not None
        assert data.classes is not None
        device, block = self.weight.device, self.image_block
        seen = []
        for rows in torch.arange(len(data.labels)).split(IMAGES):
            hidden = None if block is None else data.hidden(rows, 0, block).to(device)
            seen.append(self._before(data.image_embeds[rows].to(device), hidden).float())
        penalty = len(data.classes) / len(data.labels)  # 1 / shots
        texts, labels = data.classes.text_embeds(self.backbone), data.labels.to(device)
        self._descend(torch.cat(seen), labels, texts, penalty)
        return None

    def export(self, folder: Path) -> list[Path]:
        """Write a plain model with the trained projection in it, where `place` is the
        projection."""
        if self.config.place == "embedding":
            return []
        plain: Any = copy.deepcopy(self.backbone.model)
        plain.visual_projection.weight.data = self.weight.clone()
        return write_model(folder, self.backbone, plain)

    def loading(self, folder: Path) -> str:
        return load_model(folder, self.backbone)

    @torch.enable_grad()
    def _descend(self, seen: Tensor, labels: Tensor, texts: Tensor, penalty: float) -> None:
        start = self.weight.clone()
        weight = start.clone().requires_grad_()
        solver = torch.optim.Adam([weight], lr=self.config.lr, eps=EPS)
        for _ in range(self.config.steps):
            logits = self.tau * F.normalize(seen @ weight.T, dim=-1) @ texts.T
            loss = F.cross_entropy(logits, labels) + penalty * (weight - start).square().sum()
            solver.zero_grad()
            loss.backward()
            solver.step()
        self.weight.copy_(weight.detach())
