"""`singular_values`: how much each direction of the towers' matrices counts.

Flows in: images and captions. Flows out: embeddings (B, e) and (M, e) of the turned towers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Adapter, Needs
from trainables.adapters.shared import load_model, write_model
from trainables.config import Task, TrainConfig, Value
from trainables.data.batches import Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.models.image_tower import own_towers, upper
from trainables.models.text_tower import embed_text

MATRICES = {
    "attention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "mlp": ("fc1", "fc2"),
}
MATRICES["all"] = MATRICES["attention"] + MATRICES["mlp"]
KEPT = "singular vectors"  # with the backbone: finding them takes longer than many a trial
Factors: TypeAlias = tuple[Tensor, Tensor, Tensor]  # U, s, V


@dataclass(frozen=True)
class SingularValuesConfig:
    """The matrices whose singular values are trained.

    >>> SingularValuesConfig(targets="attention")
    SingularValuesConfig(targets='attention')
    """

    targets: Literal["all", "attention", "mlp"] = "all"  # of each block, in both towers


class Turned(nn.Module):
    """x to U (s * V x) + b, of which s (r,) is trained; U (out, r) and V (r, in) are W's."""

    values: Tensor  # (r,)

    def __init__(self, linear: nn.Linear, name: str, kept: dict[str, Factors]) -> None:
        super().__init__()
        self.frozen, self.name, self.kept = [linear], name, kept
        self.values = nn.UninitializedParameter()

    @property
    def factors(self) -> Factors:
        if self.name not in self.kept:
            self.kept[self.name] = decomposed(self.frozen[0].weight)
        return self.kept[self.name]

    def forward(self, x: Tensor) -> Tensor:
        left, _, right = self.factors
        return F.linear(F.linear(x, right) * self.values, left, self.frozen[0].bias)

    def linear(self) -> nn.Linear:
        """The same map as one matrix."""
        left, _, right = (one.double() for one in self.factors)
        plain = copy.deepcopy(self.frozen[0])
        plain.weight.data = (left * self.values.detach() @ right).to(plain.weight.dtype)
        return plain


class SingularValues(Adapter[SingularValuesConfig]):
    """W = U diag(s) V of every q, k, v, o and both MLP matrices, in both towers; only s trains.

    CLIP-SVD: Koleilat et al. 2025, arXiv:2509.03740: 0.04 % of the weights. Step 0 is zero-shot.
    The decomposition is made in float64, so that machines agree on U and V, and once for all trials
    of a process. The recipe's rate, decay, batch and schedule are the paper's; the paper chooses
    epochs by data set, so the recipe's are ours. Singular values do not decay.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("singular_values"), backbone, train)
    >>> len([p for p in adapter.parameters() if p.requires_grad])  # 6 matrices, 2 blocks, 2 towers
    24
    """

    Config: ClassVar[type[SingularValuesConfig]] = SingularValuesConfig
    NEEDS: ClassVar[Needs] = "both towers"
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            "optim.lr": 5e-4,
            "optim.weight_decay": 0.01,
            "optim.schedule": "cosine",
            "batch_size": 32,
            "epochs": 50,
        }
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        own_towers(backbone)
        # Modules are replaced: in a model of its own, whose weights are the shared ones.
        super().__init__(config, backbone.isolated())
        self.matrices = nn.ModuleDict()
        kept = backbone.beside.setdefault(KEPT, {})
        for name, module in list(self.backbone.model.named_modules()):
            block, _, own = name.rpartition(".")
            if ".encoder.layers." not in name or own not in MATRICES[self.config.targets]:
                continue
            turned = Turned(module, name, kept)
            setattr(self.backbone.model.get_submodule(block), own, turned)
            self.matrices[name.replace(".", "-")] = turned

    def prepare(self, train: SplitFeatures) -> None:
        del train
        for _, turned in self._each():
            turned.values = nn.Parameter(turned.factors[1].clone())

    @property
    def image_block(self) -> int | None:
        return 0

    def embed_text(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        del text_embeds
        return embed_text(self.backbone, tokens)

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        del image_embeds
        assert hidden is not None
        return upper(self.backbone, hidden, 0)

    def export(self, folder: Path) -> list[Path]:
        """Write a plain model, each matrix multiplied out."""
        plain: Any = copy.deepcopy(self.backbone.model)
        for name, turned in self._each():
            block, _, own = name.rpartition(".")
            setattr(plain.get_submodule(block), own, turned.linear())
        return write_model(folder, self.backbone, plain)

    def loading(self, folder: Path) -> str:
        return load_model(folder, self.backbone)

    def _each(self) -> Iterator[tuple[str, Turned]]:
        for name, turned in self.matrices.items():
            assert isinstance(turned, Turned)
            yield name.replace("-", "."), turned


def decomposed(weight: Tensor) -> Factors:
    """U (out, r), s (r,) and V (r, in) of a matrix (out, in)."""
    found = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    left, values, right = (one.to(weight.device, weight.dtype).contiguous() for one in found)
    return left, values, right
