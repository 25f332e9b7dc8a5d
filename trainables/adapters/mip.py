"""`mip`: CoCoOp's prompt, started from the model's own weights and kept small.

Flows in: images (B, e) and C classes. Flows out: scores (B, C).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainables.adapters.base import Adapter, Classifier, Needs
from trainables.adapters.shared import COOP_OPTIM, Tiles, conditional, meta_network
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.models.backbone import Backbone
from trainables.models.text_plan import Prompt


@dataclass(frozen=True)
class MipConfig:
    """How the report's two formulas are read. It defines neither their symbols nor their tensors:

        f_initialization = y / ||y||_1,  y = sum_i sigma_i x_i
        f_regularization = T(p) / sqrt(||y||_l)

    The defaults follow its words: "parameters of CLIP from the output layer", "divide the context
    and bias by the square root of vector size", and that it is built on CoCoOp.

    >>> MipConfig(terms="rows", meta=False).divisor
    'size'
    """

    n_ctx: int = 4  # M
    source: Literal["text", "image"] = "text"  # the tower whose projection is the output layer
    # What x_i and sigma_i are: singular vectors and values, or rows, each taken once.
    terms: Literal["svd", "rows"] = "svd"
    # How one y fills M vectors: all alike, or the terms dealt out in turn, each its own sum.
    fill: Literal["same", "dealt"] = "dealt"
    norm: float = 1.0  # the p of ||y||_p in the initialisation
    # The length of a vector at the start: as in the formula, or the mean one of word embeddings.
    length: Literal["formula", "words"] = "formula"
    # What context and bias are divided by: sqrt(d), sqrt(||y||_l), or nothing.
    divisor: Literal["size", "norm", "none"] = "size"
    divisor_norm: float = 1.0  # l
    meta: bool = True  # with CoCoOp's network

    def __post_init__(self) -> None:
        check(self.n_ctx >= 1, "adapter.n_ctx", "at least 1", self.n_ctx)
        check(self.norm > 0, "adapter.norm", "above 0", self.norm)
        check(self.divisor_norm > 0, "adapter.divisor_norm", "above 0", self.divisor_norm)


class Mip(Adapter[MipConfig]):
    """v_m(x) = (v_m + pi(x)) / D, v_m from the weights of the joint space's projection.

    MIP: Park 2024, "Meta-Information Based Prompt tuning". The report has no code. `MipConfig`
    lists the readings that its text allows, and a checkpoint says which of them it is of. All else
    is CoCoOp (Zhou et al. 2022, arXiv:2203.05557).

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("mip"), backbone, train)
    >>> adapter.vectors.shape  # (M, d)
    torch.Size([4, 32])
    """

    Config: ClassVar[type[MipConfig]] = MipConfig
    NEEDS: ClassVar[Needs] = "the text tower"
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {
        "classification": {
            **COOP_OPTIM,
            "batch_size": 1,
            "epochs": 10,
        }
    }

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        sums = meta_sums(backbone, self.config)  # (M, d)
        self.vectors = nn.Parameter(start(backbone, self.config, sums))  # (M, d)
        self.divisor = divisor(self.config, sums)
        self.meta = meta_network(backbone) if self.config.meta else None
        self.tiles = Tiles()

    @property
    def notes(self) -> list[str]:
        reading = ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(self.config).items())
        return [f"mip's formulas are read as {reading} (`MipConfig` says what each means)."]

    @property
    def added_tokens(self) -> int:
        return self.config.n_ctx

    @property
    def class_words(self) -> str:
        return "{}."

    @property
    def prompt(self) -> Prompt | None:
        """The context as it is learned, moved by no image."""
        return Prompt(self.vectors / self.divisor)

    @property
    def moves_prompt(self) -> bool:
        return self.meta is not None

    def set_prompt(self, vectors: Tensor) -> None:
        self.vectors = nn.Parameter(vectors * self.divisor)

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        meta = self.meta
        if meta is None:
            return super().classifier(tokens, text_embeds)

        def contexts(images: Tensor) -> Tensor:
            moved: Tensor = (self.vectors + meta(images)[:, None]) / self.divisor  # (B, M, d)
            return moved

        return conditional(self.backbone, self.tiles, tokens, contexts)


def meta_sums(backbone: Backbone, config: MipConfig) -> Tensor:
    """y for each of the M vectors: (M, d)."""
    if backbone.kind != "clip":
        check(False, "adapter", "used with a CLIP, whose towers end in a projection", backbone.kind)
    name = {"text": "text_projection", "image": "visual_projection"}[config.source]
    weight = backbone.model.get_submodule(name).weight.detach().cpu().float()  # (e, tower's width)
    if config.source == "image":  # its other side is the joint space
        weight = weight.T  # (dv, e)
    if weight.shape[1] != backbone.text_width:
        check(
            False,
            "adapter.source",
            f'"text" where the joint width is not the text tower\'s {backbone.text_width}',
            config.source,
        )
    if config.terms == "svd":
        _, sigma, vectors = torch.linalg.svd(weight, full_matrices=False)
        # A singular vector is only known up to its sign: its largest entry is made positive.
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        terms = sigma[:, None] * vectors * largest.sign()
    else:
        terms = weight
    if config.fill == "same":
        return terms.sum(0).expand(config.n_ctx, -1).clone()
    owners = torch.arange(len(terms)) % config.n_ctx
    return torch.zeros(config.n_ctx, weight.shape[1]).index_add(0, owners, terms)


def start(backbone: Backbone, config: MipConfig, sums: Tensor) -> Tensor:
    """f_initialization: (M, d)."""
    vectors = sums / sums.norm(config.norm, dim=1, keepdim=True)
    if config.length == "words":
        words = backbone.model.text_model.embeddings.token_embedding.weight.detach().cpu()
        vectors = vectors / vectors.norm(dim=1, keepdim=True) * words.norm(dim=1).mean()
    return vectors


def divisor(config: MipConfig, sums: Tensor) -> float:
    """D of f_regularization."""
    if config.divisor == "size":
        return float(sums.shape[1] ** 0.5)
    if config.divisor == "norm":
        whole = sums[0] if config.fill == "same" else sums.sum(0)  # y
        return float(whole.norm(config.divisor_norm).sqrt())
    return 1.0
