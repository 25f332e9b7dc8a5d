"""`kgcoop`: CoOp held near the words that zero-shot uses.

Flows in: class names. Flows out: embeddings (C, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Adapter, Needs, product
from trainables.adapters.shared import COOP_OPTIM, check_context, context
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Batch
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Prompt


@dataclass(frozen=True)
class KgCoopConfig:
    """The context, and the weight lambda of its distance to zero-shot's words.

    >>> KgCoopConfig(weight=2.0)
    KgCoopConfig(n_ctx=4, init='a photo of a', init_std=0.02, weight=2.0)
    """

    n_ctx: int = 4  # M
    init: str = "a photo of a"  # or "random"
    init_std: float = 0.02
    weight: float = 8.0  # lambda

    def __post_init__(self) -> None:
        check_context(self.n_ctx, self.init, self.init_std)
        check(self.weight >= 0, "adapter.weight", "at least 0", self.weight)


class KgCoop(Adapter[KgCoopConfig]):
    """CoOp's loss + lambda (1 - mean over classes of cos(learned text, the template's text)).

    KgCoOp: Yao et al. 2023, arXiv:2303.13283. The template is the data set's own.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("kgcoop"), backbone, train)
    >>> adapter.vectors.shape  # (M, d)
    torch.Size([4, 32])
    """

    Config: ClassVar[type[KgCoopConfig]] = KgCoopConfig
    NEEDS: ClassVar[Needs] = "the text tower"
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            **COOP_OPTIM,
            "batch_size": 128,
            "epochs": 100,
        }
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        own = self.config
        self.vectors = nn.Parameter(context(backbone, own.n_ctx, own.init, own.init_std))  # (M, d)

    @property
    def frozen_text(self) -> bool:
        return True

    @property
    def added_tokens(self) -> int:
        return self.config.n_ctx

    @property
    def class_words(self) -> str:
        return "{}."

    @property
    def prompt(self) -> Prompt | None:
        return Prompt(self.vectors)

    def set_prompt(self, vectors: Tensor) -> None:
        self.vectors = nn.Parameter(vectors)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.text_embeds is not None
        texts = F.normalize(self.embed_text(batch.tokens).float(), dim=-1)  # (C, e)
        images = F.normalize(batch.image_embeds.float(), dim=-1)  # (B, e)
        loss, numbers = self.objective.classify(
            product(images, texts.T), batch.image_groups, batch.progress
        )
        kept = (texts * batch.text_embeds).sum(1).mean()
        loss = loss + self.config.weight * (1 - kept)
        return loss, numbers | {"loss": loss.detach(), "kept": kept.detach()}
