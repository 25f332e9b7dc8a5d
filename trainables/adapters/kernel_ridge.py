"""`kernel_ridge`: what zero-shot gets wrong on the training images, learned in closed form.

Flows in: labelled images (N, e). Flows out: their weights A (N, C).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer

from trainables.adapters.base import Adapter, Classifier, product
from trainables.adapters.crossfit import blocks, choose, repeated
from trainables.adapters.shared import unit
from trainables.config import Task, TrainConfig, Value, check
from trainables.data.batches import Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone

BETAS = (0.3, 1.0, 3.0, 10.0)
PENALTIES = tuple(10.0 ** (half / 2) for half in range(-6, 3))  # lambda: 0.001 to 10
SHARES = (0.25, 0.5, 1.0)  # tau', of tau
SCALES = tuple(2.0**power for power in range(8))  # 1 to 128
LANDMARKS, APART = 128, 16  # so many training images, or one in 16 where that is more
FLAT = 1e-10  # of a kernel's largest eigenvalue: less is none


@dataclass(frozen=True)
class KernelRidgeConfig:
    """The four numbers as they stay where neither val nor the training images can choose them.

    >>> KernelRidgeConfig(beta=4.0)
    KernelRidgeConfig(beta=4.0, penalty=1.0, share=0.25, scale=32.0)
    """

    beta: float = 1.0  # how near an image must be to count
    penalty: float = 1.0  # lambda: how much of zero-shot stays
    share: float = 0.25  # tau' as a share of tau: how sure zero-shot is
    scale: float = 32.0  # what makes logits of the scores

    def __post_init__(self) -> None:
        for name in ("beta", "penalty", "share", "scale"):
            value = getattr(self, name)
            check(value > 0, f"adapter.{name}", "above 0", value)


class KernelRidge(Adapter[KernelRidgeConfig]):
    """Logits s (z(f) + k(f, F) A) with A = (K + lambda I)^-1 (Y - z(F)), of normalised features.

    Proximal kernel ridge regression: Bendou et al. 2025 (ProKeR, CVPR), equation of its closed
    form. F (N, e) are the training images, Y (N, C) their labels, z(f) = softmax(tau' f T^T)
    zero-shot's answer with texts T (C, e), k(f, g) = exp(-beta (2 - 2 f.g)) and K = k(F, F) (N, N).
    The scale s is ours: the scores are near 0 and 1, and a likelihood needs logits.

    beta, lambda, tau' and s are chosen on val by likelihood. For each beta, one eigendecomposition
    serves the whole grid. It is that of the kernel approximated from M landmarks among the training
    images (Nystroem's method, Williams and Seeger 2000), exact up to 128 images; for the chosen
    numbers A is then solved exactly.

    Without val the four are chosen by leave-one-out, which ridge regression has in closed form.
    Where a class has one image, leaving it out would leave the class none: then they stay as
    configured.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("kernel_ridge"), backbone, train)
    >>> adapter.keys.shape, adapter.answers.shape  # F: (N, e), and A: (N, C)
    (torch.Size([12, 16]), torch.Size([12, 3]))
    """

    Config: ClassVar[type[KernelRidgeConfig]] = KernelRidgeConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {"classification": {"epochs": 0}}

    keys: Tensor  # (N, e)
    labels: Tensor  # (N,)
    answers: Tensor  # (N, C): A
    numbers: Tensor  # (4,): beta, lambda, tau' / tau, s

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        own = self.config
        self.register_buffer("keys", UninitializedBuffer())
        self.register_buffer("labels", UninitializedBuffer(dtype=torch.int64))  # type: ignore[call-arg]
        self.register_buffer("answers", UninitializedBuffer())
        start = torch.tensor([own.beta, own.penalty, own.share, own.scale])
        self.register_buffer("numbers", start)

    def prepare(self, train: SplitFeatures) -> None:
        assert train.labels is not None
        assert train.classes is not None
        self.keys, self.labels = unit(train.image_embeds).float(), train.labels
        self.answers = torch.zeros(len(self.keys), len(train.classes))

    @property
    def open_classes(self) -> bool:
        return False

    @property
    def frozen_text(self) -> bool:
        return True

    def classifier(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Classifier:
        texts = self.class_texts(tokens, text_embeds)
        (beta, _, share, scale), tau = self.numbers.tolist(), self.tau

        def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
            del hidden
            images = F.normalize(image_embeds.float(), dim=-1)
            known = (share * tau * product(images, texts.T)).softmax(1)
            looked = torch.exp(-beta * (2 - 2 * product(images, self.keys.T)))  # (B, N)
            # The objective multiplies by tau.
            return scale / tau * (known + product(looked, self.answers))

        return similarity

    def turned(
        self, start: Mapping[str, Tensor], learned: Mapping[str, Tensor], share: float
    ) -> dict[str, Tensor]:
        """The learned A times `share`; at 0 the adapter ranks as zero-shot does."""
        del start
        return dict(learned) | {"answers": learned["answers"] * share}

    @property
    def without_val(self) -> str:
        if repeated(self.labels):
            return "beta, lambda and tau' are chosen by leave-one-out over the training images."
        return f"beta, lambda and tau' stay at {', '.join(f'{n:g}' for n in self.numbers[:3])}."

    @torch.no_grad()
    def end_epoch(self, epoch: int, val: SplitFeatures | None) -> Tensor | None:
        """Choose the four numbers, and solve for A."""
        del epoch
        assert self.classes is not None
        texts = self.classes.text_embeds(self.backbone).double()
        images, labels = None, self.labels
        if val is not None:
            assert val.labels is not None
            images, labels = unit(val.image_embeds.to(texts.device)), val.labels.to(texts.device)
        crossed = None
        if val is not None or repeated(self.labels):
            number, crossed = choose(self._grid(texts, images), labels)
            grid = torch.cartesian_prod(*map(torch.tensor, (BETAS, SHARES, PENALTIES, SCALES)))
            self.numbers.copy_(grid[number][[0, 2, 1, 3]])
        beta, penalty, share, _ = self.numbers.double()
        keys = unit(self.keys)
        kernel = near(beta, keys, keys)
        kernel.diagonal().add_(penalty)
        wrong = self._wrong(texts, keys, float(share))
        self.answers.copy_(torch.cholesky_solve(wrong, torch.linalg.cholesky(kernel)))
        return None if val is None or crossed is None else (crossed / self.tau).cpu()

    def _known(self, texts: Tensor, images: Tensor, share: float) -> Tensor:
        """z: (n, C)."""
        return (share * self.tau * images @ texts.T).softmax(1)

    def _wrong(self, texts: Tensor, keys: Tensor, share: float) -> Tensor:
        """Y - z(F): (N, C)."""
        return F.one_hot(self.labels, len(texts)) - self._known(texts, keys, share)

    def _grid(self, texts: Tensor, images: Tensor | None) -> Iterator[Tensor]:
        """The logits for each beta, tau', lambda and scale, some at a time: (A, n, C). They are
        those of `images`, or where that is None those of the training images by leave-one-out."""
        keys = unit(self.keys)
        asked = keys if images is None else images
        count = min(len(keys), max(LANDMARKS, len(keys) // APART))  # M
        spread = torch.arange(count, device=keys.device) * len(keys) // count
        marks = keys[self.labels.argsort(stable=True)[spread]]
        scales = torch.tensor(SCALES, device=keys.device)[:, None, None]
        penalties = blocks(PENALTIES, keys, len(asked) * len(texts) * len(SCALES))
        starts = [(self._known(texts, asked, s), self._wrong(texts, keys, s)) for s in SHARES]
        for beta in BETAS:
            values, vectors = torch.linalg.eigh(near(beta, marks, marks))
            root = vectors / values.clamp_min(FLAT * values[-1]).sqrt()
            seen = near(beta, keys, marks) @ root  # (N, M), of which K is nearly the square
            values, vectors = torch.linalg.eigh(seen.T @ seen)
            seen, found = seen @ vectors, near(beta, asked, marks) @ root @ vectors
            for known, wrong in starts:
                turned = seen.T @ wrong  # (M, C)
                for some in penalties:
                    damped = values.clamp_min(0) + some[:, None]  # (L, M)
                    learned = found @ (turned / damped[..., None])  # (L, n, C)
                    if images is None:  # what the others say of an image
                        own = (1 / damped) @ seen.square().T
                        learned = wrong - (wrong - learned) / (1 - own[..., None])
                    yield (scales * (known + learned).float()[:, None]).flatten(0, 1)


def near(beta: float | Tensor, some: Tensor, others: Tensor) -> Tensor:
    """k: (a, b) of unit vectors (a, e) and (b, e)."""
    return torch.exp(-beta * (2 - 2 * some @ others.T))
