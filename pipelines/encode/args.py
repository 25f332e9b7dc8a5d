"""The flags of `cliptune encode`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipelines.capacity import Gpus, check_gpus
from pipelines.ranges import MANY, Range, Wait, check_ranges
from trainables.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """What to encode, and with which backbone."""

    shards: Path | None = None
    """The folder that `cliptune shards` wrote."""
    backbone: str = ""
    """A directory in Hugging Face's or open_clip's layout, or a Hub id such as
    openai/clip-vit-base-patch32. With `--embeddings` only its text tower is used, and it may be
    left out."""
    revision: str | None = None
    """The commit (40 hex digits) of a Hub id."""
    out: Path = Path("features")
    """The folder of all stores; this one's is named after its contents' key."""
    views: Annotated[int, Range(0)] = 0
    """Augmented views (crop and flip) of each training image, beside the clean one. A view is
    encoded when a trial first trains on it, once for all."""
    pixels: bool = False
    """Keep the pixels too, for adapters of the image tower (LoRA on vision)."""
    data_seed: Annotated[int, Range(0)] = 0
    """Of the augmented views."""
    frames: Annotated[int, Range(0, MANY)] = 0
    """Frames of each clip, for adapters that look at time; the others get their mean. 0: a clip is
    the still that its first frame is."""
    sampling: Literal["uniform", "motion"] = "uniform"
    """Where the frames are taken: from equal parts of the time, or of the motion."""
    batch_size: Annotated[int, Range(1)] = 256
    """Images a step of the tower."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the towers compute in, for train, val and test alike; it is part of the store's key.
    auto: bf16 on GPUs that have it, else fp32. The store holds fp32 numbers in any case."""
    activations_gb: Annotated[float, Range(0)] = 20.0
    """Disk for states of the image tower below the adapted blocks, kept as trials ask for them."""
    workers: Annotated[int | Literal["auto"], Range(1, MANY)] = "auto"
    """Towers at work: one a GPU, or one for each 4 cores."""
    gpus: Gpus = "auto"
    """GPUs of a tower; a fraction packs several on a card. auto: 1 where the cluster has GPUs or
    its autoscaler can start nodes with them, shared where `--workers` are more; else 0."""
    wait: Wait = 10.0
    """Minutes to wait for room for the first tower, where nodes have to be started or are busy."""
    embeddings: Path | None = None
    """Instead of shards, a folder of finished embeddings: `img_emb/*.npy` with `metadata/*.parquet`
    and, if there are any, `text_emb/*.npy` with `text_metadata/*.parquet`, as clip-retrieval has
    them."""
    split: Literal["source", "hash", "draw"] = "source"
    """Of embeddings: as their metadata says, or 8 : 1 : 1 by each vector's hash (where it says
    nothing, too), or none: every draw divides them, and what it leaves is its test."""
    captions: Path | None = None
    """Of embeddings: a source of captions, as `shards` reads them, whose images have the file names
    that the metadata says."""
    logit_scale: Annotated[float, Range(0)] = 100.0
    """Of embeddings without `--backbone`: what their model multiplies similarities by."""
    clean_text: bool = True
    """Mend captions for a CLIP as its own tokenizer does: HTML entities, curly quotes, characters
    decoded wrongly; for open_clip's SigLIP also without capitals and punctuation, as it asks. It is
    part of the store's key."""

    def __post_init__(self) -> None:
        check_ranges(self)
        self._check_source()
        if self.frames and (self.pixels or self.views):
            flag = "pixels" if self.pixels else "views"
            raise ConfigError(
                f"`--frames` must be 0 with `--{flag}`, got {self.frames}: pixels and augmented "
                "views are kept of one still an image, and frames have only embeddings."
            )
        if self.sampling != "uniform" and not self.frames:
            raise ConfigError(
                f"`--frames` must be above 0 with `--sampling {self.sampling}`, got {self.frames}."
            )
        check_gpus(self.gpus)

    def _check_source(self) -> None:
        if (self.shards is None) == (self.embeddings is None):
            raise ConfigError("give either `--shards` or `--embeddings`.")
        if self.shards is not None:
            if not self.backbone:
                raise ConfigError("`--shards` needs a `--backbone` to encode them.")
            return
        for name in ("views", "pixels", "frames"):
            if getattr(self, name):
                raise ConfigError(f"`--{name}` needs images, and `--embeddings` has none.")
        if not self.logit_scale:
            raise ConfigError(f"`--logit-scale` must be above 0, got {self.logit_scale}.")
