"""`promptsrc`: learned vectors in both towers, held near the frozen model, averaged over epochs.

Flows in: classes and pixels. Flows out: embeddings (C, e) and (B, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Adapter, Needs, product
from trainables.adapters.shared import (
    COOP_OPTIM,
    check_context,
    check_length,
    deep_context,
    words_behind,
)
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Batch
from trainables.features.classes import ENSEMBLE
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.models.image_tower import upper
from trainables.models.text_plan import Prompt


@dataclass(frozen=True)
class PromptSrcConfig:
    """The vectors, how hard they are held, and which epochs count.

    The paper's Gaussian has its mean at epoch 15 of 20 and a standard deviation of 1 epoch. Here
    both are shares of `epochs`, so another number of epochs has the same curve.

    >>> PromptSrcConfig(text_weight=10.0).image_weight
    10.0
    """

    n_ctx: int = 4  # M, in each tower
    init: str = "a photo of a"  # of the text's first M, or "random"; all others are random
    init_std: float = 0.02
    depth: int = 9  # J, blocks with vectors of their own; at most as many as both towers have
    text_weight: float = 25.0  # of the distance to the frozen text
    image_weight: float = 10.0  # to the frozen images
    logits_weight: float = 1.0  # to the frozen scores
    mean: float = 0.75
    std: float = 0.05

    def __post_init__(self) -> None:
        check_context(self.n_ctx, self.init, self.init_std)
        check(self.depth >= 1, "adapter.depth", "at least 1", self.depth)
        for name in ("text_weight", "image_weight", "logits_weight"):
            check(getattr(self, name) >= 0, f"adapter.{name}", "at least 0", getattr(self, name))
        check(0 <= self.mean <= 1, "adapter.mean", "in [0, 1]", self.mean)
        check(self.std > 0, "adapter.std", "above 0", self.std)


class PromptSrc(Adapter[PromptSrcConfig]):
    """Cross-entropy + 25 |text - frozen text| + 10 |image - frozen image| + KL / C.

    PromptSRC: Khattak et al. 2023, arXiv:2307.06948. The distances are means over entries of
    normalised features, the frozen text is the mean of seven templates, and the last term is the
    mean over B x C of p log(p / q), p the frozen softmax and q the learned one. Vectors are as in
    MaPLe, but the image tower has vectors of its own: (J, M, d) and (J, M, dv). What is evaluated
    is the mean of the vectors over the epochs so far, weighted by a Gaussian of the epoch; training
    goes on from the vectors themselves. 20 epochs are the paper's setting for new classes (50 for
    few shots).

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("promptsrc"), backbone, train)
    >>> [tuple(p.shape) for p in adapter.parameters() if p.ndim == 3]  # (J, M, d) and (J, M, dv)
    [(2, 4, 32), (2, 4, 32)]
    """

    Config: ClassVar[type[PromptSrcConfig]] = PromptSrcConfig
    NEEDS: ClassVar[Needs] = "both towers"
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            **COOP_OPTIM,
            "optim.lr": 2.5e-3,
            "batch_size": 4,
            "epochs": 20,
        }
    }

    text_mean: Tensor
    image_mean: Tensor

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        own = self.config
        text = deep_context(backbone, own.depth, own.n_ctx, own.init, own.init_std)
        width = backbone.model.config.vision_config.hidden_size
        image = torch.randn(len(text), own.n_ctx, width) * own.init_std
        self.text, self.image = nn.Parameter(text), nn.Parameter(image)
        self.register_buffer("text_mean", text.clone())
        self.register_buffer("image_mean", image.clone())

    @property
    def image_block(self) -> int | None:
        return 0

    @property
    def frozen_text(self) -> bool:
        return True

    @property
    def added_tokens(self) -> int:
        return self.config.n_ctx

    @property
    def class_words(self) -> str:
        return words_behind(self.config.n_ctx)

    @property
    def frozen_words(self) -> str:
        return ENSEMBLE

    @property
    def prompt(self) -> Prompt | None:
        vectors = self.text if self.training else self.text_mean
        return Prompt(vectors[0], deep=vectors[1:])

    def set_prompt(self, vectors: Tensor) -> None:
        check_length(vectors, self.config.n_ctx, len(self.text) - 1)
        self.text_mean = torch.cat([vectors[None], self.text_mean[1:]])

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        del image_embeds
        assert hidden is not None
        return upper(self.backbone, hidden, 0, self.image if self.training else self.image_mean)

    @torch.no_grad()
    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        del val
        own, epochs = self.config, max(1, self.train_config.epochs)
        share = last_share(epoch, own.mean * epochs, own.std * epochs)
        self.text_mean.lerp_(self.text, share)
        self.image_mean.lerp_(self.image, share)
        return None

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.text_embeds is not None
        own, scale = self.config, self.objective.scale(batch.progress)
        texts = F.normalize(self.embed_text(batch.tokens).float(), dim=-1)  # (C, e)
        images = self.embed_images(batch.image_embeds, batch.hidden)
        images = F.normalize(images.float(), dim=-1)  # (B, e)
        frozen = F.normalize(batch.image_embeds.float(), dim=-1)
        similarity = product(images, texts.T)  # (B, C)
        loss, numbers = self.objective.classify(similarity, batch.image_groups, batch.progress)
        expected = (scale * product(frozen, batch.text_embeds.T)).log_softmax(1)
        found = (scale * similarity).log_softmax(1)
        apart = {
            "text_apart": own.text_weight * (texts - batch.text_embeds).abs().mean(),
            "image_apart": own.image_weight * (images - frozen).abs().mean(),
            "logits_apart": own.logits_weight * (expected.exp() * (expected - found)).mean(),
        }
        loss = loss + sum(apart.values())
        numbers |= {name: value.detach() for name, value in apart.items()}
        return loss, numbers | {"loss": loss.detach()}


def last_share(epoch: int, mean: float, std: float) -> float:
    """The weight of epoch `epoch` in the mean of epochs 1 to `epoch`: a running mean moves by this
    share. Computed by logarithms: far from its mean, a Gaussian is 0 in any floating point."""
    epochs = torch.arange(1, epoch + 1, dtype=torch.float64)
    return float((-0.5 * ((epochs - mean) / std) ** 2).softmax(0)[-1])
