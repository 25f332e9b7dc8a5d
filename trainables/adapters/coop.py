"""`coop`: learned vectors in the place of the words around a class name.

Flows in: class names. Flows out: embeddings (C, e).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainables.adapters.base import Adapter, Needs
from trainables.adapters.shared import COOP_OPTIM, check_context, context
from trainables.config import Task, TrainConfig, Value
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Place, Prompt

PLACES: dict[str, Place] = {"end": "after_sos", "middle": "around_name", "front": "after_name"}


@dataclass(frozen=True)
class CoopConfig:
    """The length of the context, the words that it starts from, and where the class name stands.

    >>> CoopConfig(n_ctx=4, class_position="middle")
    CoopConfig(n_ctx=4, init='random', init_std=0.02, class_position='middle', class_specific=False)
    """

    n_ctx: int = 16  # M
    init: str = "random"  # or words: their embeddings, the first M; what they leave is random
    init_std: float = 0.02  # of the random vectors
    class_position: Literal["end", "middle", "front"] = "end"  # of the name among the vectors
    class_specific: bool = False  # M vectors for each class instead of M for all

    def __post_init__(self) -> None:
        check_context(self.n_ctx, self.init, self.init_std)


class Coop(Adapter[CoopConfig]):
    """A class is `[SOS, v_1 .. v_M, name, ".", EOS]` with M trained vectors v of the text tower's
    width.

    CoOp: Zhou et al. 2022, arXiv:2109.01134. 200 epochs are its setting for 8 and 16 shots (100 for
    2 and 4, 50 for 1). Its last epoch was tested; here val chooses the epoch.

    >>> from trainables.adapters.registry import build, make_config
    >>> own = {"adapter.n_ctx": 4, "adapter.class_specific": True}
    >>> build(make_config("coop", own), backbone, train).vectors.shape  # (C, M, d)
    torch.Size([3, 4, 32])
    """

    Config: ClassVar[type[CoopConfig]] = CoopConfig
    NEEDS: ClassVar[Needs] = "the text tower"
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            **COOP_OPTIM,
            "batch_size": 32,
            "epochs": 200,
        }
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        own = self.config
        self.vectors = (
            nn.UninitializedParameter()
            if own.class_specific
            else nn.Parameter(context(backbone, own.n_ctx, own.init, own.init_std))
        )

    def prepare(self, train: SplitFeatures) -> None:
        own = self.config
        if isinstance(self.vectors, nn.UninitializedParameter) and train.classes is not None:
            prompt = (self.backbone, own.n_ctx, own.init, own.init_std)
            every = [context(*prompt) for _ in train.classes.names]
            self.vectors = nn.Parameter(torch.stack(every))  # (C, M, d)

    @property
    def open_classes(self) -> bool:
        return not self.config.class_specific

    @property
    def added_tokens(self) -> int:
        return self.config.n_ctx

    @property
    def class_words(self) -> str:
        return "{}."

    @property
    def prompt(self) -> Prompt | None:
        return Prompt(self.vectors, PLACES[self.config.class_position])

    def set_prompt(self, vectors: Tensor) -> None:
        self.vectors = nn.Parameter(vectors)
