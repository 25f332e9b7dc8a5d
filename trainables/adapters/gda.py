"""`gda`: a Gaussian for each class, all of one covariance, beside zero-shot.

Flows in: labelled images. Flows out: a linear classifier (C, e) in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer

from trainables.adapters.base import Adapter, Classifier, product
from trainables.adapters.crossfit import blocks, choose, left_out, repeated
from trainables.adapters.shared import unit
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone

ALPHAS = tuple(10.0 ** (eighth / 8) for eighth in range(-32, 17))  # 0.0001 to 100


@dataclass(frozen=True)
class GdaConfig:
    """The weight that the Gaussians keep where neither val nor the training images can choose it.

    >>> GdaConfig(alpha=2.0)
    GdaConfig(alpha=2.0)
    """

    alpha: float = 1.0  # how much the Gaussians weigh

    def __post_init__(self) -> None:
        check(self.alpha >= 0, "adapter.alpha", "at least 0", self.alpha)


class Gda(Adapter[GdaConfig]):
    """Logits tau f T^T + alpha (f W^T + b), of normalised features and zero-shot's texts T (C, e).

    Gaussian discriminant analysis: Wang et al. 2024, "A hard-to-beat baseline for training-free
    CLIP-based adaptation" (ICLR, arXiv:2402.04087). mu (C, e) are the classes' means, Sigma (e, e)
    the pooled covariance of the images around them, P = e ((N - 1) Sigma + tr(Sigma) I)^-1, as the
    paper shrinks it; W = mu P, b_c = -1/2 mu_c P mu_c - log C. alpha is chosen on val by
    likelihood; without val, of each part of the training images by what the others fit.
    With one image a class Sigma is 0 and has no inverse. Then it is taken around the mean of all
    images, and how the classes differ counts as noise: `notes` says so.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("gda"), backbone, train)
    >>> adapter.weight.shape  # W: (C, e)
    torch.Size([3, 16])
    """

    Config: ClassVar[type[GdaConfig]] = GdaConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {"classification": {"epochs": 0}}

    weight: Tensor  # (C, e)
    bias: Tensor  # (C,)
    alpha: Tensor

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.register_buffer("weight", UninitializedBuffer())
        self.register_buffer("bias", UninitializedBuffer())
        self.register_buffer("alpha", torch.tensor(self.config.alpha))
        self.shown: SplitFeatures | None = None  # what it is fitted to

    def prepare(self, train: SplitFeatures) -> None:
        assert train.labels is not None
        assert train.classes is not None
        self.shown = train
        weight, bias = gaussians(unit(train.image_embeds), train.labels, len(train.classes))
        self.weight, self.bias = weight.float(), bias.float()

    @property
    def open_classes(self) -> bool:
        return False

    @property
    def frozen_text(self) -> bool:
        return True

    @property
    def notes(self) -> list[str]:
        if self.shown is None or self.shown.labels is None or spread(self.shown.labels):
            return []
        return [
            "`gda` has one image of each class, around which nothing varies: its covariance is "
            "that of all images around their mean."
        ]

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        texts = self.class_texts(tokens, text_embeds)
        share = self.alpha / self.tau

        def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
            del hidden
            images = F.normalize(image_embeds.float(), dim=-1)
            gauss = product(images, self.weight.T) + self.bias
            return product(images, texts.T) + share * gauss

        return similarity

    def turned(
        self, start: Mapping[str, Tensor], learned: Mapping[str, Tensor], share: float
    ) -> dict[str, Tensor]:
        """The Gaussians' weight alpha times `share`; at 0 it is zero-shot."""
        del start
        return dict(learned) | {"alpha": learned["alpha"] * share}

    @property
    def without_val(self) -> str:
        if self.shown is not None and self.shown.labels is not None and repeated(self.shown.labels):
            return "alpha is chosen on parts of the training images, each by what the others fit."
        return f"alpha stays {self.config.alpha:g}."

    @torch.no_grad()
    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        """Choose alpha."""
        del epoch
        assert self.shown is not None
        assert self.classes is not None
        assert self.shown.labels is not None
        texts = self.classes.text_embeds(self.backbone).double()
        device = texts.device
        images, labels = unit(self.shown.image_embeds.to(device)), self.shown.labels.to(device)

        def parts(known: Tensor, classes: Tensor, asked: Tensor) -> Tensor:
            """What zero-shot and the Gaussians say: (2, n, C)."""
            weight, bias = gaussians(known, classes, len(texts))
            return torch.stack([self.tau * asked @ texts.T, asked @ weight.T + bias]).float()

        if val is None:
            found = left_out(parts, images, labels)
        else:
            assert val.labels is not None
            found = parts(images, labels, unit(val.image_embeds.to(device)))
            labels = val.labels.to(device)
        if found is None:
            return None
        known, gauss = found
        alphas = blocks(ALPHAS, known, known.numel())
        number, crossed = choose((known + a[:, None, None] * gauss for a in alphas), labels)
        self.alpha.fill_(ALPHAS[number])
        return None if val is None else (crossed / self.tau).cpu()


def spread(labels: Tensor) -> bool:
    """Whether any class has images that can vary around its mean."""
    return bool(torch.bincount(labels).max() >= 2)


def gaussians(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """W (C, e) and b (C,) of images (N, e)."""
    counts = torch.bincount(labels, minlength=classes)
    sums = torch.zeros(classes, images.shape[1], dtype=images.dtype, device=images.device)
    means = sums.index_add_(0, labels, images) / counts[:, None]  # (C, e)
    apart = images - (means[labels] if spread(labels) else images.mean(0))
    scatter = apart.T @ apart  # (N - 1) Sigma
    scatter.diagonal().add_(scatter.trace() / max(len(images) - 1, 1))
    weight = images.shape[1] * torch.linalg.solve(scatter, means.T).T
    return weight, -0.5 * (weight * means).sum(1) - math.log(classes)
