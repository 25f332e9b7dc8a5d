"""`linear_probe`: a linear classifier on the frozen image features.

Flows in: features (B, e). Flows out: scores (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer

from trainables.adapters.base import Adapter, Classifier, product
from trainables.adapters.crossfit import choose, left_out, repeated
from trainables.adapters.shared import unit
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone

PENALTIES = tuple(10.0 ** (half / 2) for half in range(2, -9, -1))  # lambda: 10 to 0.0001
STEPS = 500  # of L-BFGS for each, at most
ROUGH, EXACT = 1e-4, 1e-6  # the gradient where it ends, to choose lambda and for the one chosen


@dataclass(frozen=True)
class LinearProbeConfig:
    """Where the classifier starts, and which solver finds it.

    >>> LinearProbeConfig(init="text", solver="lbfgs")
    LinearProbeConfig(init='text', solver='lbfgs', penalty=0.01)
    """

    init: Literal["zero", "text"] = "zero"  # "text": at zero-shot, as WiSE-FT does
    solver: Literal["optim", "lbfgs"] = "optim"  # batches and `optim`, or all images to the minimum
    penalty: float = 0.01  # lbfgs: lambda, where neither val nor the training images can choose it

    def __post_init__(self) -> None:
        check(self.penalty > 0, "adapter.penalty", "above 0", self.penalty)


class LinearProbe(Adapter[LinearProbeConfig]):
    """Logits tau (f W^T + b) of the normalised image feature f; W (C, e).

    By default AdamW trains W and b, and the weight decay is searched. Text initialisation: Wortsman
    et al. 2022, arXiv:2109.01903.

    `solver="lbfgs"`, as in Radford et al. 2021: the minimum of the mean cross-entropy plus lambda/2
    |W - W0|^2. W0 is where the classifier starts, 0 or zero-shot's texts; with the texts this is
    CLAP's penalty (Silva-Rodriguez et al. 2024, arXiv:2312.12730), alike for all classes. L-BFGS
    first goes along a path of 11 lambdas, each from the last one's end, roughly and in single
    precision. There lambda is chosen by likelihood: on val, or without val on each part of the
    training images by a fit of the other parts. From there the fit of the chosen lambda goes on to
    its minimum.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("linear_probe"), backbone, train)
    >>> adapter.weight.shape, adapter.bias.shape  # (C, e) and (C,)
    (torch.Size([3, 16]), torch.Size([3]))
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
    VARIANTS: ClassVar[Mapping[Task, Sequence[Mapping[str, Value]]]] = {
        "classification": ({"adapter.solver": "lbfgs", "adapter.init": "text"},)
    }

    weight: Tensor  # (C, e)
    bias: Tensor  # (C,)

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.shown: SplitFeatures | None = None  # what lbfgs fits
        if self.config.solver == "lbfgs":
            self.register_buffer("weight", UninitializedBuffer())
            self.register_buffer("bias", UninitializedBuffer())
        else:
            self.weight = nn.UninitializedParameter()
            self.bias = nn.UninitializedParameter()

    def prepare(self, train: SplitFeatures) -> None:
        assert train.classes is not None
        weight = torch.zeros(len(train.classes), self.backbone.embed_dim)
        if self.config.init == "text":
            weight = train.classes.text_embeds(self.backbone).cpu().clone()
        bias = torch.zeros(len(train.classes))
        if self.config.solver == "lbfgs":
            self.shown, self.weight, self.bias = train, weight, bias
        else:
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

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

    @property
    def without_val(self) -> str:
        if self.shown is None or self.shown.labels is None:
            return ""
        if repeated(self.shown.labels):
            return "lambda is chosen on parts of the training images, each by what the others fit."
        return f"lambda stays {self.config.penalty:g}."

    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        """With L-BFGS: choose lambda, and fit W and b to the end."""
        del epoch
        if self.shown is None:
            return None
        assert self.shown.labels is not None
        device = self.weight.device
        images, labels = unit(self.shown.image_embeds.to(device)), self.shown.labels.to(device)
        centre = torch.zeros_like(self.weight, dtype=torch.float64)
        if self.config.init == "text":
            assert self.shown.classes is not None
            centre = self.shown.classes.text_embeds(self.backbone).double()

        def path(known: Tensor, classes: Tensor) -> list[Linear]:
            return list(self._path(known.float(), classes, centre.float(), PENALTIES, ROUGH))

        def logits(ends: list[Linear], asked: Tensor) -> Tensor:
            """Of each lambda: (L, n, C)."""
            return torch.stack([self.tau * (asked.float() @ w.T + b) for w, b in ends])

        penalty, start, crossed = self.config.penalty, None, None
        if val is not None:
            assert val.labels is not None
            ends = path(images, labels)
            grid = logits(ends, unit(val.image_embeds.to(device)))
            number, crossed = choose([grid], val.labels.to(device))
            penalty, start = PENALTIES[number], ends[number]
        else:
            found = left_out(lambda *of: logits(path(*of[:2]), of[2]), images, labels)
            if found is not None:
                penalty = PENALTIES[choose([found], labels)[0]]
        [(weight, bias)] = self._path(images, labels, centre, [penalty], EXACT, start)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        return None if crossed is None else (crossed / self.tau).cpu()

    def _path(
        self,
        images: Tensor,
        labels: Tensor,
        centre: Tensor,
        penalties: Sequence[float],
        gradient: float,
        start: Linear | None = None,
    ) -> Iterator[Linear]:
        """The minimum for each penalty, the strongest first, each started from the last one's. A
        minimum is reached where no element of the gradient is above `gradient`, in the precision of
        `images` and `centre`."""
        first = start or Linear(centre, centre.new_zeros(len(centre)))
        weight, bias = (one.to(centre, copy=True).requires_grad_() for one in first)

        def loss(penalty: float) -> Tensor:
            found = F.cross_entropy(self.tau * (images @ weight.T + bias), labels)
            return found + penalty / 2 * (weight - centre).square().sum()

        for penalty in penalties:
            minimise(partial(loss, penalty), [weight, bias], gradient)
            yield Linear(weight.detach().clone(), bias.detach().clone())


class Linear(NamedTuple):
    """A linear classifier."""

    weight: Tensor  # (C, e)
    bias: Tensor  # (C,)


@torch.enable_grad()
def minimise(loss: Callable[[], Tensor], parameters: list[Tensor], gradient: float) -> None:
    """Minimise by L-BFGS with the strong Wolfe conditions, in place."""
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=STEPS,
        tolerance_grad=gradient,
        tolerance_change=gradient * 1e-4,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        found = loss()
        found.backward()
        return found

    solver.step(closure)
