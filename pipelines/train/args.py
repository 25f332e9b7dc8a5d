"""The flags of `cliptune train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pipelines.capacity import Gpus
from pipelines.ranges import MANY, Range, Wait, check_ranges


@dataclass(frozen=True)
class Args:
    features: Path
    """A feature store written by `cliptune encode`, or a folder with one in it."""
    out: Path
    """Folder of the run. The same command in the same folder goes on where it stopped."""
    adapter: str = ""
    """Adapter to train. Default: soft_prompt, or the schedule's."""
    set: tuple[str, ...] = field(default_factory=tuple)
    """Hyperparameters, as `optim.lr=1e-3 adapter.n_ctx=8`."""
    draw: Path | None = None
    """A draw written by `cliptune draw`: classify its images instead of retrieving captions."""
    metric: str = ""
    """Decides which epoch is best and when patience ends. Default: val/t2i_r1, val/cider_d of a
    captioner, or val/accuracy with a draw; the schedule's, where there is one."""
    workers: Annotated[int, Range(1, MANY)] = 1
    """Ray Train workers that train together (gradients averaged, negatives gathered)."""
    gpus: Gpus = "auto"
    """GPUs of a worker. auto: one worker trains in this process on what this machine has; several
    get 1 each where the cluster has GPUs or its autoscaler can start nodes with them, else 0."""
    wait: Wait = 10.0
    """Minutes to wait for room for all workers, where nodes have to be started or are busy."""
    retain: tuple[Path, ...] = ()
    """Draws of classes that training never sees (`cliptune draw --part new`): each epoch, and
    zero-shot, also measures its accuracy on their val images, `val/retained`."""
    schedule: Path | None = None
    """A schedule that `cliptune tune --scheduler pbt` wrote: its adapter and values, which change
    while training, instead of `--adapter` and `--set`."""
    val: bool = True
    """Measure on val after each epoch and keep the best one. `--no-val` opens no val at all, and
    keeps the last."""

    def __post_init__(self) -> None:
        check_ranges(self)
