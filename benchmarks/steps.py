"""What the rows that train have in common: losses of embeddings, and the backward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Outputs

SCALE = 1 / 0.07  # where CLIP starts; at its final 100, either way is 1e-5 away from fp64


def step(loss: Tensor, trained: Mapping[str, Tensor], **outputs: Tensor) -> Outputs:
    """The backward pass: outputs and gradients."""
    gradients = torch.autograd.grad(loss, list(trained.values()))
    named = {f"gradient of {n}": g for n, g in zip(trained, gradients, strict=True)}
    return {n: o.detach() for n, o in outputs.items()} | named


def contrast(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's symmetric loss of B pairs, and its logits (B, B)."""
    logits = SCALE * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2, logits
