"""`tip_adapter`: the training images themselves as a cache that zero-shot looks things up in.

Flows in: images (B, e). Flows out: scores (B, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer

from trainables.adapters.base import Adapter, Classifier, product
from trainables.adapters.crossfit import choose
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone

SHARPNESS, SHARE = (0.1, 7.0, 200), (0.1, 3.0, 20)  # the paper's grid for beta and for alpha
VIEWS = 10  # augmented views that a key is the mean of


@dataclass(frozen=True)
class TipAdapterConfig:
    """The cache. A tuned cache is trained at `alpha` and `beta`; val then chooses both anew.

    >>> TipAdapterConfig(tune=True)
    TipAdapterConfig(tune=True, alpha=1.17, beta=1.0, grid=30.0)
    """

    tune: bool = False  # train the keys (Tip-Adapter-F)
    alpha: float = 1.17  # how much the cache weighs
    beta: float = 1.0  # how sharply it looks
    grid: float = 30.0  # multiplies both upper ends of the search; the paper's is 1 to 16.7

    def __post_init__(self) -> None:
        check(self.alpha >= 0, "adapter.alpha", "at least 0", self.alpha)
        check(self.beta > 0, "adapter.beta", "above 0", self.beta)
        check(self.grid > 0, "adapter.grid", "above 0", self.grid)


class TipAdapter(Adapter[TipAdapterConfig]):
    """Logits tau f W^T + alpha exp(-beta (1 - f F^T)) V, of normalised features.

    Tip-Adapter: Zhang et al. 2022, arXiv:2207.09519. W (C, e) are zero-shot's texts, F (N, e) the
    keys, each the mean of the views of a training image, V (N, C) their labels. alpha and beta are
    chosen on val, at every epoch, from a grid of 4,000. (The paper's code chose them, and the
    epoch, on test.) Where zero-shot is far off, the best alpha is far above 3, the end of the
    paper's usual grid.

    The best of so many settings looks better on the val that chose it than it is. So val is
    measured by cross-fitting: each fifth of val by the setting that the other fifths choose.

    Without val, alpha and beta are chosen by leave-one-out, each image looked up among the others.
    Trained keys have seen all images, so with them both stay as they were in training.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("tip_adapter"), backbone, train)
    >>> adapter.keys.shape, adapter.labels.shape  # F: (N, e), and of V the labels: (N,)
    (torch.Size([12, 16]), torch.Size([12]))
    """

    Config: ClassVar[type[TipAdapterConfig]] = TipAdapterConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            "optim.lr": 1e-3,
            "optim.schedule": "cosine",
            "batch_size": 256,
            "epochs": 20,
        }
    }

    keys: Tensor  # (N, e)
    labels: Tensor  # (N,)
    alpha: Tensor
    beta: Tensor

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if self.config.tune:
            self.keys = nn.UninitializedParameter()
        else:
            self.register_buffer("keys", UninitializedBuffer())
        self.register_buffer("labels", UninitializedBuffer(dtype=torch.int64))  # type: ignore[call-arg]
        self.register_buffer("alpha", torch.tensor(self.config.alpha))
        self.register_buffer("beta", torch.tensor(self.config.beta))

    def prepare(self, train: SplitFeatures) -> None:
        assert train.labels is not None
        rows = torch.arange(len(train.groups))
        views = range(1, min(train.views, VIEWS) + 1) or range(1)
        seen = [F.normalize(train.embeds(rows, view).float(), dim=-1) for view in views]
        keys = F.normalize(torch.stack(seen).mean(0), dim=-1)
        if self.config.tune:
            self.keys = nn.Parameter(keys)
        else:
            self.keys = keys
        self.labels = train.labels

    @property
    def open_classes(self) -> bool:
        return False

    @property
    def frozen_text(self) -> bool:
        return True

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        texts = self.class_texts(tokens, text_embeds)
        every = torch.arange(len(texts), device=self.labels.device)
        values = (self.labels[:, None] == every).to(texts.dtype)  # (N, C)

        def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
            del hidden
            images = F.normalize(image_embeds.float(), dim=-1)
            own = self.config if self.training else self
            near = torch.exp(-own.beta * (1 - product(images, self.keys.T)))  # (B, N)
            # The objective multiplies by tau, which is not for the cache.
            cache = product(near, values) / self.objective.start
            return product(images, texts.T) + own.alpha * cache

        return similarity

    def turned(
        self, start: Mapping[str, Tensor], learned: Mapping[str, Tensor], share: float
    ) -> dict[str, Tensor]:
        """The cache's weight alpha times `share`; at 0 it is zero-shot."""
        del start
        return dict(learned) | {"alpha": learned["alpha"] * share}

    @property
    def without_val(self) -> str:
        if self.config.tune:
            return f"alpha and beta stay as it trains, {self.config.alpha} and {self.config.beta}."
        return "alpha and beta are chosen by leave-one-out over the training images."

    @torch.no_grad()
    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        """Choose alpha and beta on val: the most accurate, among equals the likeliest. The result
        is val's similarities by cross-fitting, each fifth's by what the other fifths choose."""
        del epoch
        device, classes = self.backbone.device, self.classes
        if val is not None:
            assert val.labels is not None
            classes, labels = val.classes, val.labels.to(device)
            images = F.normalize(val.image_embeds.to(device).float(), dim=-1)
        elif self.config.tune:
            return None
        else:
            images, labels = self.keys, self.labels
        assert classes is not None
        texts = classes.text_embeds(self.backbone)
        plain, affinity = self.tau * images @ texts.T, self.keys @ images.T  # (n, C), (N, n)
        if val is None:
            affinity.fill_diagonal_(-torch.inf)  # an image is not near itself
        betas, alphas = self._grid(device)
        weight = self.tau / float(self.objective.start)  # 1, unless tau has moved
        none = torch.zeros_like(plain.T)
        near = (weight * torch.exp(-beta * (1 - affinity)) for beta in betas)
        caches = (none.index_add(0, self.labels, one).T for one in near)  # (n, C)
        grid = (plain + alphas[:, None, None] * cache for cache in caches)
        number, crossed = choose(grid, labels, accurate=True)
        self.alpha.copy_(alphas[number % len(alphas)])
        self.beta.copy_(betas[number // len(alphas)])
        return None if val is None else (crossed / self.tau).float().cpu()

    def _grid(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """All values of beta, and all of alpha."""
        sharp, share = (
            torch.linspace(low, high * self.config.grid, count, device=device)
            for low, high, count in (SHARPNESS, SHARE)
        )
        return sharp, share
