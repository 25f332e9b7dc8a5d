"""Which images and captions meet in which step.

Flows in: one split's features, mapped read-only. Flows out: `Batch`es, each a pure function of
(config, step): a resumed run, and each worker of a group, gets the same ones as an undisturbed run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainables.adapters.base import Adapter
from trainables.config import TrainConfig
from trainables.data.batches import Batch
from trainables.distributed import Worker
from trainables.errors import ConfigError, DataError
from trainables.features.split import SplitFeatures


def generator(*key: int) -> torch.Generator:
    """A generator seeded by a tuple of numbers; different tuples give unrelated streams."""
    state = 0
    for part in key:
        state = (state ^ part) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019 & (1 << 63) - 1
        state ^= state >> 29
    return torch.Generator().manual_seed(state)


class Order:
    """The order of the images in each epoch, drawn from (seed, epoch)."""

    def __init__(self, seed: int, images: int) -> None:
        self.seed, self.images = seed, images
        self.last: tuple[int, Tensor] | None = None

    def __call__(self, epoch: int) -> Tensor:
        last = self.last  # another thread may be at work on the next step
        if last is None or last[0] != epoch:
            draw = generator(self.seed, 0, epoch)
            last = self.last = (epoch, torch.randperm(self.images, generator=draw))
        return last[1]


def shown(data: SplitFeatures, epoch: int) -> int:
    """The view of epoch `epoch`: 1 + epoch mod K of K augmented ones, else the clean one."""
    return 1 + epoch % data.views if data.views else 0


class Batches:
    """The training batches of a split, cut into one contiguous part a worker.

    An epoch shows each image once, in an order drawn from (seed, epoch); an incomplete last batch
    is left out. Each image comes with `captions_per_image` of its captions: consecutive ones from a
    random start, around again where it has fewer. With K augmented views in the store, epoch t
    shows view 1 + t mod K.
    """

    def __init__(
        self,
        data: SplitFeatures,
        config: TrainConfig,
        image_block: int | None = None,
        frozen_text: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`image_block`, `frozen_text`: the form in which the adapter takes its inputs."""
        self.data, self.config = data, config
        self.image_block, self.frozen_text = image_block, frozen_text
        images = len(data.groups)
        if config.batch_size % world:
            raise DataError(
                f"`batch_size` must be a multiple of {world} workers, got {config.batch_size}."
            )
        if images < 2:
            raise DataError(f"the train split must hold at least 2 images, got {images}.")
        mined = config.loss.hard_negatives == "mined"
        self.anchors = min(config.batch_size, images)
        if mined:
            self.anchors = max(1, config.batch_size // (1 + config.loss.mined_per_image))
        self.neighbours = data.neighbours(config.loss.mined_pool) if mined else None
        self.steps_per_epoch = max(1, images // self.anchors)
        self.counts = torch.bincount(data.caption_rows, minlength=images)  # (N,)
        self.first = self.counts.cumsum(0) - self.counts
        self.part = (rank, world)
        self.order = Order(config.seed, images)

    def __call__(self, step: int, total: int) -> Batch:
        """Step `step` of `total`, this worker's part."""
        epoch, within = divmod(step, self.steps_per_epoch)
        draw = generator(self.config.seed, 1, step)
        rows = self.order(epoch)[within * self.anchors : (within + 1) * self.anchors]
        if self.neighbours is not None:
            pool = self.neighbours.shape[1]
            picks = torch.randint(
                pool, (len(rows), self.config.loss.mined_per_image), generator=draw
            )
            rows = torch.cat([rows, self.neighbours[rows].gather(1, picks).flatten()])
        start = torch.rand(len(rows), generator=draw)
        rank, world = self.part
        if world > 1:
            rows = rows[: len(rows) // world * world]
            share = len(rows) // world
            rows, start = (x[rank * share : (rank + 1) * share] for x in (rows, start))
        return self._batch(rows, start, epoch, step / total)

    def _batch(self, rows: Tensor, start: Tensor, epoch: int, progress: float) -> Batch:
        data = self.data
        counts = self.counts[rows]
        begin = (start * counts).long()
        wanted = torch.arange(self.config.loss.captions_per_image)
        offsets = (begin[:, None] + wanted) % counts[:, None]
        captions = (self.first[rows][:, None] + offsets).flatten()  # (M,)
        view = shown(data, epoch)
        block = self.image_block
        return Batch(
            image_embeds=data.embeds(rows, view),
            hidden=None if block is None else data.hidden(rows, view, block),
            tokens=data.tokens.select(captions),
            text_embeds=data.text_embeds()[captions].float() if self.frozen_text else None,
            image_groups=data.groups[rows],
            caption_groups=data.groups[data.caption_rows[captions]],
            progress=torch.tensor(progress, dtype=torch.float64),
        )


class ClassBatches:
    """The training batches of labelled images; every batch has the words of all C classes.

    Epochs, the incomplete last batch and augmented views are as in `Batches`.
    """

    def __init__(
        self, data: SplitFeatures, adapter: Adapter[Any], rank: int = 0, world: int = 1
    ) -> None:
        """Raises `ConfigError` where a class name does not fit beside what the adapter adds."""
        assert data.labels is not None
        assert data.classes is not None
        config, backbone = adapter.train_config, adapter.backbone
        size = config.batch_size // world * world
        if not size:
            raise ConfigError(
                f"`batch_size` must be at least 1 for each of {world} workers, got "
                f"{config.batch_size}."
            )
        self.data, self.adapter, self.labels = data, adapter, data.labels
        self.size = min(size, len(data.groups) // world * world)
        self.steps_per_epoch = len(data.groups) // self.size
        self.tokens = data.classes.tokens(backbone, adapter.class_words, adapter.added_tokens)
        self.text_embeds = None
        if adapter.frozen_text:
            self.text_embeds = data.classes.text_embeds(backbone, adapter.frozen_words)
        self.part = (rank, world)
        self.order = Order(config.seed, len(data.groups))

    def __call__(self, step: int, total: int) -> Batch:
        """Step `step` of `total`, this worker's part."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rank, world = self.part
        rows = self.order(epoch)[within * self.size : (within + 1) * self.size][rank::world]
        view, block = shown(self.data, epoch), self.adapter.image_block
        return Batch(
            image_embeds=self.data.embeds(rows, view),
            hidden=None if block is None else self.data.hidden(rows, view, block),
            tokens=self.tokens,
            text_embeds=self.text_embeds,
            image_groups=self.labels[rows],
            caption_groups=torch.arange(len(self.tokens)),
            progress=torch.tensor(step / total, dtype=torch.float64),
        )


class CaptionBatches:
    """The training batches of a captioner: captions in its own words, each beside its image.

    An epoch shows each caption once, in an order drawn from (seed, epoch), as ClipCap counts its
    epochs; an incomplete last batch is left out. Augmented views are as in `Batches`.
    """

    def __init__(
        self, data: SplitFeatures, adapter: Adapter[Any], rank: int = 0, world: int = 1
    ) -> None:
        config = adapter.train_config
        if config.batch_size % world:
            raise DataError(
                f"`batch_size` must be a multiple of {world} workers, got {config.batch_size}."
            )
        self.data, self.words = data, adapter.words(data)
        captions = len(self.words)
        self.size = min(config.batch_size, captions // world * world)
        if not self.size:
            raise DataError(f"the train split must hold at least {world} captions, got {captions}.")
        self.steps_per_epoch = captions // self.size
        self.part = (rank, world)
        self.order = Order(config.seed, captions)

    def __call__(self, step: int, total: int) -> Batch:
        """Step `step` of `total`, this worker's part."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rank, world = self.part
        captions = self.order(epoch)[within * self.size : (within + 1) * self.size][rank::world]
        rows = self.data.caption_rows[captions]
        groups, frames = self.data.groups[rows], self.data.frame_embeds
        return Batch(
            image_embeds=self.data.embeds(rows, shown(self.data, epoch)),
            hidden=None,
            tokens=self.words.select(captions),
            text_embeds=None,
            image_groups=groups,
            caption_groups=groups,
            progress=torch.tensor(step / total, dtype=torch.float64),
            frames=None if frames is None else frames[rows],
        )


def batches(
    train: SplitFeatures, adapter: Adapter[Any], worker: Worker
) -> Batches | ClassBatches | CaptionBatches:
    """The training batches of the adapter's task."""
    if (train.labels is not None) != (adapter.train_config.task == "classification"):
        raise ConfigError(
            f"`{adapter.train_config.name}` is configured for {adapter.train_config.task}, which "
            f"{'takes no draw' if train.labels is not None else 'needs a draw with classes'}."
        )
    part = (worker.rank, worker.world)
    if train.labels is not None:
        return ClassBatches(train, adapter, *part)
    if adapter.train_config.task == "captioning":
        return CaptionBatches(train, adapter, *part)
    return Batches(train, adapter.train_config, adapter.image_block, adapter.frozen_text, *part)
