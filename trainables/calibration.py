"""What val showed of an adapter's scores: how to turn them into probabilities and into sets.

Flows in: the similarities of val's images to their classes. Flows out: a `Calibration`, which lies
beside the adapter in its checkpoint.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainables.errors import DataError
from trainables.metrics.calibration import fit_scale
from trainables.metrics.conformal import adaptive_misfit, least, split_misfit, threshold

Kind = Literal["split", "adaptive", "class-wise"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)
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
        """Of similarities (B, C), at the fitted scale or the adapter's own: (B, C) float64."""
        return _probabilities(scores, self.scale if fitted else self.own_scale)

    def sets(
        self, scores: Tensor, confidence: float, kind: Kind = "split", fitted: bool = True
    ) -> Tensor:
        """The conformal set of each image by its similarities (B, C): (B, C) bool.

        `class-wise` keeps the promise for each class by itself (Sadinle et al. 2019); raises
        `DataError` where a class has too few images in val to leave it out of any set.
        """
        probabilities = self.probabilities(scores, fitted)
        if kind == "adaptive":
            most = threshold(self.adaptive[int(fitted)], confidence)
            return adaptive_misfit(probabilities) <= most
        own = self.split[int(fitted)]
        if kind == "split":
            return split_misfit(probabilities) <= threshold(own, confidence)
        classes = scores.shape[1]
        if least(confidence) > (fewest := self.fewest(classes)):
            raise DataError(
                f"class-wise sets at {confidence:g} need {least(confidence)} val images of each "
                f"class, got {fewest} of the class with the fewest: take split or adaptive ones."
            )
        most_of = [threshold(own[self.labels == label], confidence) for label in range(classes)]
        return split_misfit(probabilities) <= torch.tensor(most_of, dtype=torch.float64)

    def fewest(self, classes: int) -> int:
        """Val's images of the class that has fewest."""
        return int(torch.bincount(self.labels, minlength=classes).min())

    def unlike_val(self, scores: Tensor, confidence: float) -> Tensor:
        """Whether an image's highest similarity is below that of every image of val: (B,) bool. One
        image like val's in N + 1 is; where that is more than the confidence allows, none is."""
        if len(self) < least(confidence):
            return torch.zeros(len(scores), dtype=torch.bool)
        return scores.max(1).values < self.best.min()

    def tensors(self) -> dict[str, Tensor]:
        """As a checkpoint holds it."""
        scales = torch.tensor([self.own_scale, self.scale], dtype=torch.float64)
        own: dict[str, Tensor] = {name: getattr(self, name) for name in TENSORS}
        return {"scales": scales} | {name: tensor.contiguous() for name, tensor in own.items()}

    @classmethod
    def of_tensors(cls, stored: dict[str, Tensor]) -> Calibration:
        own, fitted = stored["scales"].tolist()
        return cls(own, fitted, *(stored[name] for name in TENSORS))


def calibrate(scores: Tensor, labels: Tensor, own_scale: float) -> Calibration:
    """Fit the scale on val's similarities (N, C) and labels (N,), and keep what conformal sets
    need."""
    scale = fit_scale(scores, labels)
    both = [_probabilities(scores, one) for one in (own_scale, scale)]
    misfits = [
        torch.stack([misfit(one).gather(1, labels[:, None])[:, 0] for one in both])
        for misfit in (split_misfit, adaptive_misfit)
    ]
    return Calibration(own_scale, scale, labels, scores.max(1).values.float(), *misfits)


def _probabilities(scores: Tensor, scale: float) -> Tensor:
    return (scale * scores.double()).softmax(1)
