"""What parts work on: CLIP's shapes on the device, and trials of real caption lengths.

Flows in: a `Scale`. Flows out: backbones and `Run`s there. No part needs a model that was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.captions import captions, class_prompts
from benchmarks.gpu.scale import Scale
from benchmarks.models import backbone, normal
from trainables.adapters.registry import make_config
from trainables.config import Task
from trainables.features.classes import Classes
from trainables.features.lazy_parts import LazyParts
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.training.loop import Run
from trainables.training.selection import METRICS


def clip(scale: Scale, shape: str, **layers: int) -> Backbone:
    """That shape on the device; towers that a part does not need can be cut short."""
    made = backbone("tiny" if scale.small else shape, **layers)
    return replace(made, model=made.model.to(scale.device), device=scale.device)


def text_only(scale: Scale, shape: str = "B/32") -> Backbone:
    return clip(scale, shape, vision_layers=1)


@dataclass(frozen=True)
class Trials:
    """Makes trials of one shape on images with captions of real lengths."""

    clip: Backbone
    images: int
    folder: Path

    def data(self, classes: bool = False) -> SplitFeatures:
        """A caption an image; with `classes`, labels among 37 instead."""
        names = class_prompts()
        labels = torch.arange(self.images) % len(names)
        data = SplitFeatures(
            ids=[str(number) for number in range(self.images)],
            image_embeds=normal(self.images, self.clip.embed_dim, seed=1),
            pixels=None,
            tokens=captions(self.images),
            caption_rows=torch.arange(self.images),
            groups=torch.arange(self.images),
            lazy=LazyParts(self.clip, "train"),
        )
        if not classes:
            return data
        # As a tokenizer would have cut them: there is none.
        key = ("tokens", self.clip.fingerprint, "{}.")
        of = Classes(tuple(map(str, range(len(names)))), kept={key: (names, 0)})
        return replace(data, labels=labels, classes=of)

    def make(self, name: str, count: int, kind: str = "run", **values: Any) -> list[Run]:
        """`count` trials that differ in learning rate and weight decay."""
        task: Task = "classification" if name == "coop" else "retrieval"
        data = self.data(classes=name == "coop")
        fixed = {"task": task, "optim.kind": "adamw", "optim.schedule": "cosine", "epochs": 1000}
        return [
            Run(
                make_config(
                    name,
                    fixed
                    | {"optim.lr": 1e-4 * (1 + number), "optim.weight_decay": 0.01 * number}
                    | values,
                ),
                *(self.clip, data, data, self.folder / f"{kind}{number}", METRICS[task][0]),
                checkpoint_seconds=float("inf"),
            )
            for number in range(count)
        ]


@contextmanager
def trials(clip: Backbone, images: int) -> Iterator[Trials]:
    with TemporaryDirectory(prefix="cliptune-gpu-") as folder:
        yield Trials(clip, images, Path(folder))
