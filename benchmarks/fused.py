"""Trials trained together against the same trials one after the other, optimizer included.

Both sides are the engine's: `Run` steps each trial as if it were alone, `StackedRuns` steps all of
them as one. The heads are the small ones that fusing is for, on cached features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Case, Outputs, Row
from benchmarks.models import backbone, normal
from benchmarks.steps import SCALE
from trainables.adapters.base import Adapter
from trainables.adapters.registry import ADAPTERS, make_config
from trainables.config import Task, TrainConfig, Value
from trainables.data.batches import Batch, Tokens
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.training.loop import Run
from trainables.training.selection import METRICS
from trainables.trials.stacked import StackedRuns

CLASSES, IMAGES, STEPS = 37, 640, 20


@dataclass(frozen=True)
class HeadConfig:
    """What is trained on the image's embedding x."""

    hidden: int = 0  # 0: W x, linear. Else x + W2 relu(W1 x) through so many units (CLIP-Adapter)


class Head(Adapter[HeadConfig]):
    """A classifier: softmax over the classes' fixed vectors, or over the rows of a linear head."""

    Config: ClassVar[type[HeadConfig]] = HeadConfig
    RECIPES: ClassVar[Mapping[Task, Mapping[str, Value]]] = {"retrieval": {}}
    centres: Tensor

    def __init__(self, config: TrainConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        width, hidden = backbone.embed_dim, self.config.hidden
        if hidden:
            self.register_buffer("centres", normal(CLASSES, width, seed=3), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(width, hidden or CLASSES, bias=False),
            *((nn.ReLU(), nn.Linear(hidden, width, bias=False)) if hidden else ()),
        )

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        unit = F.normalize(batch.image_embeds, dim=-1)  # (B, e)
        logits = self.layers(unit)  # (B, classes)
        if self.config.hidden:
            logits = F.normalize(0.8 * unit + 0.2 * logits, dim=-1) @ self.centres.T
        loss = F.cross_entropy(SCALE * logits, batch.image_groups)
        return loss, {"loss": loss.detach()}

    def embed_text(self, tokens: Tokens, text_embeds: Tensor | None = None) -> Tensor:
        raise NotImplementedError("a classifier embeds no text")


def features(width: int) -> SplitFeatures:
    """Cached embeddings in clusters, one caption an image; `groups` are the classes."""
    labels = torch.arange(IMAGES) % CLASSES
    centres = normal(CLASSES, width, seed=0)
    return SplitFeatures(
        ids=[str(number) for number in range(IMAGES)],
        image_embeds=centres[labels] + normal(IMAGES, width, seed=1),
        pixels=None,
        tokens=Tokens(torch.tensor([0, 1]).repeat(IMAGES), torch.arange(IMAGES + 1) * 2),
        caption_rows=torch.arange(IMAGES),
        groups=labels,
    )


def trials(count: int, hidden: int, folder: Path) -> list[Run]:
    """`count` trials of batch 32 that differ in learning rate and weight decay."""
    clip = backbone("B/32", text_layers=1, vision_layers=1)
    data = features(clip.embed_dim)
    shared: dict[str, Any] = {"adapter.hidden": hidden, "batch_size": 32, "precision": "fp32"}
    with patch.dict(ADAPTERS, {"head": Head}):
        return [
            Run(
                make_config(
                    "head",
                    shared
                    | {
                        "optim.lr": 1e-4 * 10 ** (2 * number / count),
                        "optim.weight_decay": 0.01 * (1 + number),
                    },
                ),
                *(clip, data, data, folder / f"{number}", METRICS["retrieval"][0]),
                checkpoint_seconds=float("inf"),
            )
            for number in range(count)
        ]


def start(runs: list[Run], initial: list[dict[str, Tensor]]) -> None:
    """Back to step 0, in place: these tensors are views of the stacked ones."""
    with torch.no_grad():
        for run, values in zip(runs, initial, strict=True):
            run.begin_epoch()
            run.step = 0
            for name, parameter in run.trained.items():
                parameter.copy_(values[name])
                for moment in run.optimizer.state[parameter].values():
                    moment.zero_()


def parameters(runs: list[Run]) -> Outputs:
    return {
        name: torch.stack([run.trained[name].detach().clone() for run in runs])
        for name in runs[0].trained
    }


def heads(count: int, hidden: int) -> Case:
    """20 steps of each of `count` trials."""
    with tempfile.TemporaryDirectory(prefix="cliptune-bench-") as folder:
        alone = trials(count, hidden, Path(folder) / "alone")
        together = trials(count, hidden, Path(folder) / "together")
    initial = [{n: p.detach().clone() for n, p in run.trained.items()} for run in alone]
    stack = StackedRuns(together)

    def baseline() -> Outputs:
        start(alone, initial)
        for run in alone:
            for _ in range(STEPS):
                run.count(run._train_step())
            run.settle()
        return parameters(alone)

    def ours() -> Outputs:
        start(together, initial)
        for _ in range(STEPS):
            numbers = stack._step()
            for n, run in enumerate(together):
                run.count(numbers, n)
        for run in together:
            run.settle()
        return parameters(together)

    return Case(baseline, ours)


ROWS = (
    Row("fused/linear", "64 trials of a linear head, 512 to 37, 20 steps of batch 32",
        4.5, lambda: heads(64, 0)),
    Row("fused/clip-adapter", "16 trials of a head 512-128-512, 20 steps of batch 32",
        1.6, lambda: heads(16, 128)),
)  # fmt: skip
