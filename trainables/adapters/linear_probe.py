"""`linear_probe`: a linear classifier on the frozen image features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Adapter, Classifier, product
from trainables.backbone import Backbone
from trainables.config import Task, TrainConfig, Value
from trainables.data import Tokens
from trainables.features import SplitFeatures


@dataclass(frozen=True)
class LinearProbeConfig:
    """Where the classifier starts."""

    init: Literal["zero", "text"] = "zero"  # "text": at zero-shot, as WiSE-FT does


class LinearProbe(Adapter[LinearProbeConfig]):
    """Logits tau (f W^T + b) of the normalised image feature f; W (C, e).

    Radford et al. 2021 fit it by L-BFGS with the penalty chosen on val; here it is AdamW, and the
    weight decay is searched. Text initialisation: Wortsman et al. 2022, arXiv:2109.01903.
    """

    Config: ClassVar[type[LinearProbeConfig]] = LinearProbeConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            "optim.lr": 1e-3,
            "optim.weight_decay": 0.01,
            "optim.schedule": "cosine",
            "batch_size": 32,
            "epochs": 50,
        }
    }

    weight: Tensor  # (C, e)
    bias: Tensor  # (C,)

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.weight = nn.UninitializedParameter()
        self.bias = nn.UninitializedParameter()

    def prepare(self, train: SplitFeatures) -> None:
        assert train.classes is not None
        weight = torch.zeros(len(train.classes), self.backbone.embed_dim)
        if self.config.init == "text":
            weight = train.classes.text_embeds(self.backbone).cpu().clone()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(train.classes)))

    @property
    def open_classes(self) -> bool:
        return False

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        del tokens, text_embeds

        def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
            del hidden
            images = F.normalize(image_embeds.float(), dim=-1)
            return product(images, self.weight.T) + self.bias

        return similarity
