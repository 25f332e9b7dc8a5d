"""The flags of `cliptune arena`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipelines.capacity import Gpus
from pipelines.ranges import MANY, Range, Wait, check_ranges


@dataclass(frozen=True)
class Args:
    data: tuple[str, ...]
    """Labelled shards as NAME=DIR, e.g. `eurosat=shards/eurosat`; or one store that `encode
    --embeddings` wrote."""
    backbone: str = ""
    """A directory in Hugging Face layout, or a Hub id; a store of embeddings has its own."""
    revision: str | None = None
    """The commit (40 hex digits) of a Hub id."""
    out: Path = Path("runs/arena")
    """Folder of the arena. The same command goes on where it stopped."""
    words: tuple[str, ...] = ()
    """Class names and template as NAME=LIST, a shipped list or a JSON file; a data set that bears a
    shipped list's name has that one anyway."""
    adapter: tuple[str, ...] = ()
    """Adapters; all that classify where not given."""
    shots: Annotated[tuple[int, ...], Range(1)] = (16,)
    """Images a class to train on; val has at most 4."""
    seed: Annotated[tuple[int, ...], Range(0)] = (1, 2, 3)
    """Of the draws and of the training."""
    protocol: tuple[Literal["all", "base_to_new", "transfer", "shift"], ...] = (
        "all",
        "base_to_new",
    )
    """Trained and tested on all classes; on half of them, tested on both halves; tested on the
    other data sets: of other classes, or a shift with the same ones."""
    trials: Annotated[int, Range(1)] = 4
    """Budget of every cell: trials, the published recipe first."""
    seconds: Annotated[float, Range(0)] = 0.0
    """Budget of every cell in seconds of training and measuring; 0: no such limit."""
    epochs: Annotated[int, Range(0)] = 0
    """The most epochs of any trial; 0: as many as each recipe has."""
    views: Annotated[int, Range(0)] = 0
    """Augmented views of each training image, encoded once for all."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the frozen towers compute in; auto: bf16 on GPUs that have it, else fp32."""
    fewer: bool = False
    """Where a class has fewer images than shots, take what there is."""
    concurrent: Annotated[int, Range(0, MANY)] = 0
    """Cells at once; 0: one a GPU, or a CPU."""
    gpus: Gpus = "auto"
    """GPUs of a cell and of a tower that encodes; a fraction packs several on a card. auto: 1 where
    the cluster has GPUs or its autoscaler can start nodes with them, else 0."""
    wait: Wait = 10.0
    """Minutes to wait for room for the first cell, where nodes have to be started or are busy."""
    portfolio: bool = True
    """After its recipe, a cell tries shipped points that were good on other data."""

    def __post_init__(self) -> None:
        check_ranges(self)
