"""On what, and how large, a part measures: a card and CLIP's shapes, or a CPU and tiny ones.

Flows in: a device. Flows out: backbones and trials there, and clocks that wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.captions import captions, class_prompts
from benchmarks.models import backbone, normal
from trainables.adapters.registry import make_config
from trainables.backbone import Backbone
from trainables.classes import Classes
from trainables.config import Task
from trainables.data import Tokens
from trainables.features import SplitFeatures
from trainables.loop import METRICS, Run

CUT = {"text_layers": 1, "vision_layers": 1}  # of a tower that a part does not need


@dataclass(frozen=True)
class Scale:
    """Where the work is done; on a CPU it is only to run to its end."""

    device: torch.device

    @property
    def small(self) -> bool:
        return self.device.type == "cpu"

    def wait(self) -> None:
        if not self.small:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """How long `work` takes, to the end of what it started on the device."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def clip(self, shape: str, **layers: int) -> Backbone:
        made = backbone("tiny" if self.small else shape, **layers)
        return replace(made, model=made.model.to(self.device), device=self.device)


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
        )
        if not classes:
            return data
        # As a tokenizer would have cut them: there is none.
        key = ("tokens", self.clip.fingerprint, "{}.")
        kept: dict[tuple[str, ...], tuple[Tokens, int]] = {key: (names, 0)}
        of = Classes(tuple(map(str, range(len(names)))), kept=dict(kept))
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
