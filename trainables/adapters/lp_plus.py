"""`lp_plus`: a linear classifier beside weighted texts, at learning rates that the data give.

Flows in: labelled images (N, e). Flows out: W (C, e) and alpha (C,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer

from trainables.adapters.base import Adapter, Classifier, product
from trainables.adapters.shared import unit
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone

ALPHA = 250.0  # where alpha starts, of the mean similarity of an image to its class's text
MOMENTUM = 0.9
TURN = 10  # alpha moves every so many steps


@dataclass(frozen=True)
class LpPlusConfig:
    """The number of steps; all learning rates are derived from the data.

    >>> LpPlusConfig(steps=100)
    LpPlusConfig(steps=100)
    """

    steps: int = 300

    def __post_init__(self) -> None:
        check(self.steps >= 1, "adapter.steps", "at least 1", self.steps)


class LpPlus(Adapter[LpPlusConfig]):
    """Logits f.w_c + b_c + alpha_c f.t_c, of normalised features f and zero-shot's texts t (C, e).

    LP++: Huang et al. 2024 (CVPR, arXiv:2404.02285). w (C, e) starts at the classes' means, alpha
    (C,) at 250 times the mean similarity of an image to its text. Full-batch gradient steps on the
    cross-entropy, w with momentum at a rate 4 N / lambda_max(F^T F), alpha every tenth at
    N / (4 max_c sum_n (f_n.t_c)^2): bounds of the curvature, so nothing is chosen on val. F (N, e)
    are the training images.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("lp_plus"), backbone, train)
    >>> adapter.weight.shape, adapter.alpha.shape  # (C, e) and (C,)
    (torch.Size([3, 16]), torch.Size([3]))
    """

    Config: ClassVar[type[LpPlusConfig]] = LpPlusConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {"classification": {"epochs": 0}}

    weight: Tensor  # (C, e)
    bias: Tensor  # (C,)
    alpha: Tensor  # (C,)

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        for name in ("weight", "bias", "alpha"):
            self.register_buffer(name, UninitializedBuffer())
        self.shown: SplitFeatures | None = None  # what it is fitted to

    def prepare(self, train: SplitFeatures) -> None:
        assert train.classes is not None
        self.shown, classes = train, len(train.classes)
        self.weight = torch.zeros(classes, self.backbone.embed_dim)
        self.bias, self.alpha = torch.zeros(classes), torch.full((classes,), self.tau)  # zero-shot

    @property
    def open_classes(self) -> bool:
        return False

    @property
    def frozen_text(self) -> bool:
        return True

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        texts = self.class_texts(tokens, text_embeds)
        tau = self.tau

        def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
            del hidden
            images = F.normalize(image_embeds.float(), dim=-1)
            own = product(images, self.weight.T) + self.bias
            return (own + self.alpha * product(images, texts.T)) / tau

        return similarity

    @torch.no_grad()
    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        """Fit by full-batch gradient steps. Nothing is chosen on val."""
        del epoch, val
        assert self.shown is not None
        assert self.shown.labels is not None
        assert self.classes is not None
        texts = self.classes.text_embeds(self.backbone).double()
        images = unit(self.shown.image_embeds.to(texts.device))
        labels = self.shown.labels.to(texts.device)
        own = F.one_hot(labels, len(texts)).to(texts.dtype)  # (N, C)
        said = images @ texts.T  # (N, C)
        weight = own.T @ images / own.sum(0)[:, None]
        bias, momentum = (
            weight.new_zeros(len(weight)),
            weight.new_zeros(len(weight), 1 + len(texts.T)),
        )
        start = ((own * said).sum(0) / own.sum(0)).mean()
        alpha = (ALPHA * start).expand(len(texts)).clone()
        top = torch.linalg.eigvalsh(
            images @ images.T if len(images) < len(texts.T) else images.T @ images
        )[-1]
        fast, slow = 4 * len(images) / top, len(images) / (4 * said.square().sum(0).max())
        for step in range(1, self.config.steps + 1):
            off = (images @ weight.T + bias + alpha * said).softmax(1) - own  # (N, C)
            off /= len(images)
            if step % TURN == 0:
                alpha = alpha - slow * (off * said).sum(0)
            momentum = MOMENTUM * momentum + torch.cat([off.T @ images, off.sum(0)[:, None]], 1)
            weight = weight - fast * momentum[:, :-1]
            bias = bias - fast * momentum[:, -1]
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.alpha.copy_(alpha)
        return None
