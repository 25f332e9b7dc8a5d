"""The adapter contract: what the one training loop knows of every method.

Flows in: a frozen backbone and the method's own config. Flows out: a loss for the loop, embeddings
for the metrics, and a checkpoint that is exactly the trainable parameters plus `config.json`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor, nn

from trainables.backbone import Backbone
from trainables.config import TrainConfig, Value
from trainables.data import Batch, Predictions, Tokens
from trainables.losses import Objective

C = TypeVar("C")


class Adapter(nn.Module, ABC, Generic[C]):
    """One way to adapt a frozen CLIP.

    Trainable are the parameters with `requires_grad`. The backbone is shared by all adapters of a
    process, is not a submodule, and is never changed.
    """

    Config: ClassVar[type[Any]]
    RECIPE: ClassVar[Mapping[str, Value]]  # the published settings outside `Config`, dotted

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__()
        self.train_config = config
        self.config: C = config.adapter
        self.objective = Objective(config.loss, config.temperature, backbone)
        # A list hides the frozen backbone from `parameters()`, `state_dict()` and DDP.
        self._frozen = [backbone]

    @property
    def backbone(self) -> Backbone:
        return self._frozen[0]

    @property
    def inputs(self) -> Literal["features", "pixels"]:
        """What the images of a batch must come as."""
        return "features"

    @property
    def added_tokens(self) -> int:
        """Positions that the method takes from every caption: long ones are cut by as many."""
        return 0

    @abstractmethod
    def embed_text(self, tokens: Tokens) -> Tensor:
        """Captions to the joint space, not normalised: (M, e)."""

    def embed_images(self, image_embeds: Tensor, pixels: Tensor | None) -> Tensor:
        """Images to the joint space, not normalised: (B, e). By default the frozen tower's."""
        del pixels
        return image_embeds

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise, and numbers worth logging."""

    @abstractmethod
    def predict(self, batch: Batch) -> Predictions:
        """The normalised embeddings that the metrics rank."""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss, under the name that DDP wraps."""
        return self.loss(batch)

    def export(self, folder: Path) -> list[Path]:
        """Write the adapter in the formats of other libraries, where there is one."""
        del folder
        return []
