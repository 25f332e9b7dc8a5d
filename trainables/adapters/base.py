"""The adapter contract: what the one training loop knows of every method.

Flows in: a frozen backbone and the method's own config. Flows out: a loss for the loop, embeddings
for the metrics, and a checkpoint that is exactly the trainable parameters plus `config.json`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

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
    def image_block(self) -> int | None:
        """The first block of the image tower that the method changes; None: it leaves the tower
        alone, and images come as its outputs. What is below is computed once for all trials."""
        return None

    @property
    def frozen_text(self) -> bool:
        """Whether the method leaves the text tower alone, and captions come as its outputs."""
        return False

    @property
    def added_tokens(self) -> int:
        """Positions that the method takes from every caption: long ones are cut by as many."""
        return 0

    @abstractmethod
    def embed_text(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        """Captions to the joint space, not normalised: (M, e). `text_embeds` (M, e) are the frozen
        tower's, where `frozen_text`."""

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Images to the joint space, not normalised: (B, e). By default the frozen tower's."""
        del hidden
        return image_embeds

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and numbers worth logging."""

    @abstractmethod
    def predict(self, batch: Batch) -> Predictions:
        """The normalised embeddings that the metrics rank."""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, under the name that DDP wraps."""
        return self.loss(batch)

    def export(self, folder: Path) -> list[Path]:
        """Write the adapter in the formats of other libraries, where there is one."""
        del folder
        return []
