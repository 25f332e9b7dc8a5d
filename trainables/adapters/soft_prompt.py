"""`soft_prompt`: learned vectors among the words of every caption.

Flows in: captions. Flows out: embeddings (M, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainables.adapters.base import Adapter, Needs
from trainables.adapters.shared import check_context, check_length, context
from trainables.config import Task, TrainConfig, Value, check
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Prompt


@dataclass(frozen=True)
class SoftPromptConfig:
    """The prompt. The paper does not state its length; 16 is CoOp's.

    >>> SoftPromptConfig(n_ctx=4, init="a photo of a")
    SoftPromptConfig(n_ctx=4, place='after_sos', init='a photo of a', init_std=0.02, depth=0)
    """

    n_ctx: int = 16  # P, the number of vectors
    place: Literal["after_sos", "before_eot", "front"] = "after_sos"
    init: str = "random"  # or words: their embeddings, the first P; what they leave is random
    init_std: float = 0.02  # of the random vectors
    depth: int = 0  # of the blocks after the first, how many get P vectors of their own

    def __post_init__(self) -> None:
        check_context(self.n_ctx, self.init, self.init_std)
        check(self.depth >= 0, "adapter.depth", "at least 0", self.depth)


class SoftPrompt(Adapter[SoftPromptConfig]):
    """P trainable vectors stand between the start token and the words of each caption.

    Soft prompts for language models: Lester et al. 2021, arXiv:2104.08691; on the captions of an
    image retrieval: Akhlaqi 2024 ("Text-to-Image Retrieval Using Soft Prompt Tuning on CLIP"). The
    vectors live in the space of the token embeddings. With `depth` D, the blocks 2 to D + 1 read P
    fresh vectors in the places of the first ones (deep prompts, as in MaPLe).

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("soft_prompt", {"adapter.n_ctx": 4}), backbone, pairs)
    >>> adapter.vectors.shape  # (P, d)
    torch.Size([4, 32])
    """

    Config: ClassVar[type[SoftPromptConfig]] = SoftPromptConfig
    NEEDS: ClassVar[Needs] = "the text tower"
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "retrieval": {"optim.lr": 1e-4, "batch_size": 32}
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        own = self.config
        shape = (own.n_ctx, backbone.text_width)
        self.vectors = nn.Parameter(context(backbone, own.n_ctx, own.init, own.init_std))  # (P, d)
        self.deep = (
            nn.Parameter(torch.randn(own.depth, *shape) * own.init_std) if own.depth else None
        )

    @property
    def added_tokens(self) -> int:
        return self.config.n_ctx

    @property
    def prompt(self) -> Prompt | None:
        return Prompt(self.vectors, self.config.place, self.deep)

    def set_prompt(self, vectors: Tensor) -> None:
        check_length(vectors, self.config.n_ctx, self.config.depth)
        self.vectors = nn.Parameter(vectors)
