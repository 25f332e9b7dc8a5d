"""What val showed of an adapter's scores: how to turn them into probabilities and into sets.

Flows in: the similarities (N, C) of val's images to their classes. Flows out: a `Calibration`,
which a checkpoint holds beside its adapter.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainables.errors import DataError
from trainables.metrics.calibration_error import fit_scale
from trainables.metrics.conformal import (
    adaptive_misfit,
    least,
    rejects,
    split_misfit,
    threshold,
)

Kind = Literal["split", "adaptive", "class-wise"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)
TIMES = ("before", "after")  # the fitted temperature
TENSORS = ("labels", "best", "split", "adaptive")


@dataclass(frozen=True)
class Calibration:
    """N images of val, their C classes, and the two scales that turn similarities into logits: the
    adapter's own, and the one that makes val's labels likeliest (temperature scaling).

    >>> scores = torch.eye(3).repeat(4, 1)
    >>> found = calibrate(scores, torch.arange(3).repeat(4), own_scale=1.0)
    >>> found.sets(torch.tensor([[1.0, 0.0, 0.0]]), 0.9, "split").tolist()
    [[True, False, False]]
    """

    own_scale: float
    scale: float
    labels: Tensor  # (N,) int64
    best: Tensor  # (N,) float32, the highest similarity of each image
    split: Tensor  # (2, N) float64, of the image's own class, at either scale
    adaptive: Tensor  # (2, N) float64

    def __len__(self) -> int:
        return len(self.labels)

    def probabilities(self, scores: Tensor, fitted: bool = True) -> Tensor:
        """The probabilities (B, C) of similarities (B, C), at the fitted scale or at the adapter's
        own, in float64."""
        return _probabilities(scores, self.scale if fitted else self.own_scale)

    def sets(
        self, scores: Tensor, confidence: float, kind: Kind = "split", fitted: bool = True
    ) -> Tensor:
        """The conformal set of each image by its similarities (B, C): (B, C) bool. An image
        `unlike_val` has an empty set; the promise allows for that.

        `class-wise` keeps the promise for each class by itself (Sadinle et al. 2019). It raises
        `DataError` where a class has so few images in val that no set could leave the class out.
        """
        probabilities = self.probabilities(scores, fitted)
        misfits = (adaptive_misfit if kind == "adaptive" else split_misfit)(probabilities)
        most = self._most(scores.shape[1], confidence, kind, fitted)
        return (misfits <= most) & ~self.unlike_val(scores, confidence, kind)[:, None]

    def _most(self, classes: int, confidence: float, kind: Kind, fitted: bool) -> Tensor:
        """The threshold of each class, or of all: (C,) or (1,)."""
        higher = int(self.rejects(classes, confidence, kind))
        own = (self.adaptive if kind == "adaptive" else self.split)[int(fitted)]
        if kind != "class-wise":
            return torch.tensor([threshold(own, confidence, higher)], dtype=torch.float64)
        if least(confidence) > (fewest := self.fewest(classes)):
            raise DataError(
                f"class-wise sets at {confidence:g} need {least(confidence)} val images of each "
                f"class, got {fewest} of the class with the fewest: take split or adaptive ones."
            )
        each = [own[self.labels == label] for label in range(classes)]
        most = [threshold(of_class, confidence, higher) for of_class in each]
        return torch.tensor(most, dtype=torch.float64)

    def fewest(self, classes: int) -> int:
        """The number of val's images of its smallest class."""
        return int(torch.bincount(self.labels, minlength=classes).min())

    def rejects(self, classes: int, confidence: float, kind: Kind) -> bool:
        """Whether val has enough images to call others unlike it and still keep the promise."""
        return rejects(self.fewest(classes) if kind == "class-wise" else len(self), confidence)

    def unlike_val(self, scores: Tensor, confidence: float, kind: Kind = "split") -> Tensor:
        """Whether an image's highest similarity is below that of every image of val: (B,) bool. Of
        images like val's, one in N + 1 is; where the confidence does not allow for that many, none
        is."""
        if not self.rejects(scores.shape[1], confidence, kind):
            return torch.zeros(len(scores), dtype=torch.bool)
        return scores.max(1).values < self.best.min()

    def tensors(self) -> dict[str, Tensor]:
        """The calibration as a checkpoint holds it."""
        scales = torch.tensor([self.own_scale, self.scale], dtype=torch.float64)
        own: dict[str, Tensor] = {name: getattr(self, name) for name in TENSORS}
        return {"scales": scales} | {name: tensor.contiguous() for name, tensor in own.items()}

    @classmethod
    def of_tensors(cls, stored: dict[str, Tensor], classes: int) -> Calibration:
        """The calibration of a checkpoint, for so many classes. Raises `DataError` where the
        tensors cannot be those of one."""
        if stored.keys() != {"scales", *TENSORS}:
            raise DataError(f"must hold {', '.join(['scales', *TENSORS])}, got {sorted(stored)}.")
        images, labels = stored["best"].numel(), stored["labels"]
        for name, tensor in stored.items():
            shape = (2,) if name == "scales" else (images,) if name in TENSORS[:2] else (2, images)
            if tensor.shape != shape or not tensor.isfinite().all():
                raise DataError(
                    f"`{name}` must be finite and of shape {shape}, got {tuple(tensor.shape)}."
                )
        if labels.dtype != torch.int64 or set(labels.tolist()) - set(range(classes)) or not images:
            raise DataError(f"`labels` must be those of {classes} classes, got {labels!r:.60}.")
        if stored["scales"].min() <= 0:
            raise DataError(f"`scales` must be above 0, got {stored['scales'].tolist()}.")
        own, fitted = stored["scales"].tolist()
        return cls(own, fitted, *(stored[name] for name in TENSORS))


def calibrate(scores: Tensor, labels: Tensor, own_scale: float) -> Calibration:
    """The calibration by val's similarities (N, C) and labels (N,): the fitted scale, and what
    conformal sets need."""
    scale = fit_scale(scores, labels)
    both = [_probabilities(scores, one) for one in (own_scale, scale)]
    misfits = [
        torch.stack([misfit(one).gather(1, labels[:, None])[:, 0] for one in both])
        for misfit in (split_misfit, adaptive_misfit)
    ]
    return Calibration(own_scale, scale, labels, scores.max(1).values.float(), *misfits)


def _probabilities(scores: Tensor, scale: float) -> Tensor:
    return (scale * scores.double()).softmax(1)
