"""`lora`: low-rank updates of the attention or MLP matrices of either tower, as PEFT makes them.

Flows in: images and captions. Flows out: embeddings (B, e) and (M, e) of the updated towers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainables.adapters.base import Adapter, Needs
from trainables.adapters.shared import write_model
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.models.backbone import Backbone
from trainables.models.image_tower import depth, own_towers, upper
from trainables.models.text_tower import embed_text

ATTENTION = r"self_attn\.(?:{})_proj"
TARGETS = {
    "qv": ATTENTION.format("q|v"),
    "qkv": ATTENTION.format("q|k|v"),
    "qkvo": ATTENTION.format("q|k|v|out"),
    "mlp": r"mlp\.(?:fc1|fc2)",
    "all": rf"(?:{ATTENTION.format('q|k|v|out')}|mlp\.(?:fc1|fc2))",
}


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices W become W + s B A, with A (rank, in) and B (out, rank).

    >>> LoraConfig(rank=4, targets="all")
    LoraConfig(tower='text', targets='all', layers=0, rank=4, alpha=16.0, dropout=0.1, rslora=False)
    """

    tower: Literal["text", "vision", "both"] = "text"  # "vision" and "both" need pixels
    targets: Literal["qv", "qkv", "qkvo", "mlp", "all"] = "qv"  # letters: attention's matrices
    layers: int = 0  # of each tower, how many blocks, counted from the output; 0: all
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1  # on the input of A, in training only
    rslora: bool = False  # s = alpha / sqrt(rank) (Kalajdzievski 2023) instead of alpha / rank

    def __post_init__(self) -> None:
        check(self.layers >= 0, "adapter.layers", "at least 0", self.layers)
        check(self.rank >= 1, "adapter.rank", "at least 1", self.rank)
        check(self.alpha > 0, "adapter.alpha", "above 0", self.alpha)
        check(0 <= self.dropout < 1, "adapter.dropout", "in [0, 1)", self.dropout)


class Lora(Adapter[LoraConfig]):
    """A frozen CLIP with trained low-rank updates; B starts at 0, so step 0 is zero-shot.

    LoRA: Hu et al. 2021, arXiv:2106.09685. The recipe for retrieval is that of the project
    "Multimodal AI: CLIP Fine-tuning for Image-Text Retrieval": text tower, q and v, temperature
    frozen. Unlike there, captions of one image are never each other's negatives. The recipe for
    classes is that of CLIP-LoRA (Zanella and Ben Ayed 2024, arXiv:2405.18541), which has one
    setting for every data set. CLIP-LoRA takes 500 steps a shot, which in batches of 32 are
    16,000/C epochs of C classes: the recipe's 400 are those of 40 classes.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("lora", {"adapter.rank": 4}), backbone, pairs)
    >>> len([p for p in adapter.parameters() if p.requires_grad])  # A, B of q, v in 2 blocks
    8
    """

    Config: ClassVar[type[LoraConfig]] = LoraConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "retrieval": {
            "optim.lr": 5e-5,
            "optim.weight_decay": 0.01,
            "optim.schedule": "constant",
            "batch_size": 32,
            "epochs": 20,
            "patience": 3,
        },
        "classification": {
            "adapter.tower": "both",
            "adapter.targets": "qkv",
            "adapter.rank": 2,
            "adapter.alpha": 1.0,
            "adapter.dropout": 0.25,
            "adapter.rslora": True,
            "optim.lr": 2e-4,
            "optim.weight_decay": 0.01,
            "optim.schedule": "cosine",
            "optim.clip_norm": 0.0,
            "batch_size": 32,
            "epochs": 400,
        },
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        own_towers(backbone)
        # PEFT replaces modules: it gets a model of its own, whose weights are the shared ones.
        super().__init__(config, backbone.isolated())
        own = self.config
        peft_config = PeftConfig(
            target_modules=target_modules(own, self.backbone.model.config),
            r=own.rank,
            lora_alpha=own.alpha,  # type: ignore[arg-type, unused-ignore]  # PEFT only divides it
            lora_dropout=own.dropout,
            use_rslora=own.rslora,
        )
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers for an attribute that was renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self._hidden = [get_peft_model(self.backbone.model, peft_config)]
        peft_config.base_model_name_or_path = backbone.name
        peft_config.revision = backbone.revision
        # Of the hidden model, only what is LoRA's own belongs to this module.
        self.updates = nn.ModuleDict(
            {
                name.replace(".", "-"): nn.ModuleDict(
                    {
                        "A": layer.lora_A["default"],
                        "B": layer.lora_B["default"],
                        "dropout": layer.lora_dropout["default"],
                    }
                )
                for name, layer in self.backbone.model.named_modules()
                if isinstance(layer, LoraLayer)
            }
        )

    @classmethod
    def needs(cls, config: TrainConfig) -> Needs:
        return "the text tower" if config.adapter.tower == "text" else "both towers"

    @property
    def image_block(self) -> int | None:
        if self.config.tower == "text":
            return None
        return depth(self.backbone) - self.config.layers if self.config.layers else 0

    @property
    def frozen_text(self) -> bool:
        return self.config.tower == "vision"

    def embed_text(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        if self.frozen_text and text_embeds is not None:
            return text_embeds
        dropout = self.training and self.config.dropout > 0  # it draws for each node
        return embed_text(self.backbone, tokens, share=not dropout)

    def embed_images(self, image_embeds: Tensor, hidden: Tensor | None = None) -> Tensor:
        if self.image_block is None:
            return image_embeds
        assert hidden is not None
        return upper(self.backbone, hidden, self.image_block)

    def turned(
        self, start: Mapping[str, Tensor], learned: Mapping[str, Tensor], share: float
    ) -> dict[str, Tensor]:
        """W + share s B A. The scale s is no tensor, so B is multiplied by `share`. At 0 the
        adapter is zero-shot."""
        updates = {n: t for n, t in learned.items() if n.startswith("updates.")}
        scaled = {n: t * share if n.endswith(".B.weight") else t for n, t in updates.items()}
        return super().turned(start, learned, share) | scaled

    def export(self, folder: Path) -> list[Path]:
        """Write PEFT's own format, for `PeftModel.from_pretrained(CLIPModel..., folder)`."""
        # Its default would ask the hub whether the vocabulary grew.
        self._hidden[0].save_pretrained(str(folder), save_embedding_layers=False)
        return [folder / "adapter_model.safetensors", folder / "adapter_config.json"]

    def loading(self, folder: Path) -> str:
        return f'PeftModel.from_pretrained(CLIPModel.from_pretrained(...), "{folder}")'

    def merge(self, folder: Path) -> list[Path]:
        """Write a plain model, the updates added to its weights, and what prepares its inputs."""
        return write_model(folder, self.backbone, self.merged())

    def merged(self) -> Any:
        """A plain model with the updates in its weights."""
        return copy.deepcopy(self._hidden[0]).merge_and_unload()


def target_modules(config: LoraConfig, model_config: Any) -> str:
    """The regular expression for PEFT: full names of the matrices to update."""
    towers = ("text", "vision") if config.tower == "both" else (config.tower,)
    names = []
    for tower in towers:
        depth = getattr(model_config, f"{tower}_config").num_hidden_layers
        check(config.layers <= depth, "adapter.layers", f"at most {depth}", config.layers)
        blocks = "|".join(map(str, range(depth - (config.layers or depth), depth)))
        names.append(rf"{tower}_model\.encoder\.layers\.(?:{blocks})")
    return rf"(?:{'|'.join(names)})\.{TARGETS[config.targets]}"
