"""`two_stage`: first the towers' layer norms, then a classifier on the adapted features.

Flows in: images and class names. Flows out: scores (B, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Adapter, Needs
from trainables.adapters.shared import load_model, write_model
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.models.image_tower import own_towers, upper
from trainables.models.text_tower import embed_text

BELOW = "pre_layrnorm"  # of CLIP's image tower: in front of block 0, where features begin


@dataclass(frozen=True)
class TwoStageConfig:
    """The share of the epochs after which the second stage begins.

    >>> TwoStageConfig(share=0.5)
    TwoStageConfig(share=0.5)
    """

    share: float = 0.6  # of the epochs that are the first's

    def __post_init__(self) -> None:
        check(0 < self.share <= 1, "adapter.share", "in (0, 1]", self.share)


class TwoStage(Adapter[TwoStageConfig]):
    """Stage 1: scale and shift of every layer norm. Stage 2: one row w_c a class, tau cos(f, w_c).

    2SFS: Farina et al. 2025 (CVPR, arXiv:2503.11609). The rows (C, e) start at the texts of the
    adapted tower, and train alone: both towers stay as the first stage left them. Classes that were
    not trained on have no row and are embedded by the adapted text tower. Unlike in the paper, the
    norm in front of the image tower's first block stays, and norms do not decay. The paper takes
    300 steps a shot, which in batches of 32 are 9,600 / C epochs of C classes: the recipe's 240 are
    those of 40 classes.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("two_stage"), backbone, train)
    >>> int(adapter.stage), adapter.rows.shape  # (C, e)
    (1, torch.Size([3, 16]))
    """

    Config: ClassVar[type[TwoStageConfig]] = TwoStageConfig
    NEEDS: ClassVar[Needs] = "both towers"
    FUSES: ClassVar[bool] = False  # a stage trains what the other leaves without a gradient
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            "optim.lr": 2e-4,
            "optim.weight_decay": 0.01,
            "optim.schedule": "cosine",
            "optim.clip_norm": 0.0,
            "batch_size": 32,
            "epochs": 240,
        }
    }

    rows: Tensor  # (C, e)
    stage: Tensor  # 1 or 2

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        own_towers(backbone)
        # The norms are trained in a model of its own, whose other weights are the shared ones.
        super().__init__(config, backbone.isolated())
        self.norms = nn.ModuleDict()
        for name, module in self.backbone.model.named_modules():
            if isinstance(module, nn.LayerNorm) and not name.endswith(BELOW):
                module.weight = nn.Parameter(module.weight.detach().clone())
                module.bias = nn.Parameter(module.bias.detach().clone())
                self.norms[name.replace(".", "-")] = module
        self.rows = nn.UninitializedParameter()
        self.register_buffer("stage", torch.tensor(1))
        self.second = False
        self.places: tuple[Tokens, list[int]] | None = None  # the rows of the last words asked for

    def prepare(self, train: SplitFeatures) -> None:
        assert train.classes is not None
        self.rows = nn.Parameter(train.classes.text_embeds(self.backbone).cpu().clone())

    @property
    def image_block(self) -> int | None:
        return 0

    def train(self, mode: bool = True) -> TwoStage:
        """Read the stage once an epoch: reading it in a step would wait for the device."""
        self.second = int(self.stage) == 2
        return super().train(mode)

    def embed_text(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        del text_embeds
        if not self.second:
            return embed_text(self.backbone, tokens)
        place = self._places(tokens)
        if all(row >= 0 for row in place):
            return self.rows[place]
        known = torch.tensor([row >= 0 for row in place], device=self.rows.device)
        return torch.where(known[:, None], self.rows[place], embed_text(self.backbone, tokens))

    def _places(self, tokens: Tokens) -> list[int]:
        """The row of each class name; -1: it has none."""
        if self.places is None or self.places[0] is not tokens:
            assert self.classes is not None
            trained = _words(self.classes.tokens(self.backbone))
            of = {words: row for row, words in enumerate(trained)}
            self.places = tokens, [of.get(words, -1) for words in _words(tokens)]
        return self.places[1]

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        del image_embeds
        assert hidden is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.second):
            return upper(self.backbone, hidden, 0)

    @torch.no_grad()
    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        """At the end of the first stage, set the rows to the texts by the trained norms."""
        del val
        if not self.second and epoch >= round(self.config.share * self.train_config.epochs):
            assert self.classes is not None
            texts = embed_text(self.backbone, self.classes.tokens(self.backbone))
            self.rows.copy_(F.normalize(texts.float(), dim=-1))
            self.stage.fill_(2)
            self.second = True
        return None

    def export(self, folder: Path) -> list[Path]:
        """Write a plain model with the norms in it."""
        return write_model(folder, self.backbone, self.backbone.model)

    def loading(self, folder: Path) -> str:
        return load_model(folder, self.backbone)


def _words(tokens: Tokens) -> list[tuple[int, ...]]:
    ids = tokens.ids.tolist()
    return [tuple(ids[start:end]) for start, end in pairwise(tokens.offsets.tolist())]
