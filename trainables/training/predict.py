"""A whole split through an adapter: val each epoch, test once.

Flows in: an adapter and a split of N images and M captions. Flows out: embeddings (N, e) and (M,
e), scores (N, C), or N captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.adapters.base import Adapter
from trainables.data.batches import Predictions
from trainables.features.classes import Classes
from trainables.features.split import SplitFeatures
from trainables.hardware import autocast

TEXTS = 4096  # captions at a time; the text tower takes fewer in one pass by itself


@contextmanager
def in_use(adapter: Adapter[Any]) -> Iterator[None]:
    """The adapter in eval mode, without gradients, in the precision of its training."""
    training = adapter.training
    adapter.eval()
    with torch.no_grad(), autocast(adapter.train_config.precision, adapter.backbone.device):
        yield
    adapter.train(training)


def embed_images(adapter: Adapter[Any], data: SplitFeatures, batch_size: int = 256) -> Tensor:
    """Normalised embeddings of all images (view 0) of `data`: (N, e)."""
    device = adapter.backbone.device
    images = []
    with in_use(adapter):
        for rows in torch.arange(len(data.groups)).split(batch_size):
            block = adapter.image_block
            hidden = None if block is None else data.hidden(rows, 0, block).to(device)
            embeds = adapter.embed_images(data.embeds(rows).to(device), hidden)
            images.append(F.normalize(embeds.float(), dim=-1))
    return torch.cat(images)


def predict(adapter: Adapter[Any], data: SplitFeatures, batch_size: int = 256) -> Predictions:
    """Normalised embeddings of all images (view 0) and all captions of `data`, in its order.

    >>> from trainables.adapters.registry import build, make_config
    >>> found = predict(build(make_config("projection"), backbone, pairs), pairs)
    >>> found.image_embeds.shape, found.text_embeds.shape  # (N, e), (M, e)
    (torch.Size([24, 16]), torch.Size([48, 16]))
    """
    device = adapter.backbone.device
    images = embed_images(adapter, data, batch_size)
    texts = []
    # A caption that stands there often, as a class's does, goes through the tower once.
    distinct, copy_of = data.tokens.unique()
    some = torch.zeros(len(distinct), dtype=torch.int64)
    some[copy_of] = torch.arange(len(copy_of))  # a caption for each
    with in_use(adapter):
        for rows in torch.arange(len(distinct)).split(max(batch_size, TEXTS)):
            frozen = (
                data.text_embeds()[some[rows]].float().to(device) if adapter.frozen_text else None
            )
            embeds = adapter.embed_text(distinct.select(rows), frozen)
            texts.append(F.normalize(embeds.float(), dim=-1))
    return Predictions(images, torch.cat(texts)[copy_of.to(device)])


def speak(
    adapter: Adapter[Any],
    data: SplitFeatures,
    batch_size: int = 256,
    shown: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> list[str]:
    """A caption for each image (view 0) or clip of `data`, in its order: N. `shown` iterates over
    the parts of `data`; a progress bar may be given."""
    device = adapter.backbone.device
    said: list[str] = []
    with in_use(adapter):
        for rows in shown(torch.arange(len(data.groups)).split(batch_size)):
            frames = None if data.frame_embeds is None else data.frame_embeds[rows].to(device)
            said += adapter.captions(data.embeds(rows).to(device), frames)
    return said


def score(
    adapter: Adapter[Any], data: SplitFeatures, classes: Classes, batch_size: int = 256
) -> Tensor:
    """The similarities of all images (view 0) of `data` to each class: (N, C) float32.

    >>> from trainables.adapters.registry import build, make_config
    >>> adapter = build(make_config("coop"), backbone, train)
    >>> score(adapter, train, train.classes).shape  # (N, C)
    torch.Size([12, 3])
    """
    device, backbone = adapter.backbone.device, adapter.backbone
    frozen = classes.text_embeds(backbone, adapter.frozen_words) if adapter.frozen_text else None
    words = classes.tokens(backbone, adapter.class_words, adapter.added_tokens)
    scores = []
    with in_use(adapter):
        classifier = adapter.classifier(words, frozen)
        for rows in torch.arange(len(data.groups)).split(batch_size):
            block = adapter.image_block
            hidden = None if block is None else data.hidden(rows, 0, block).to(device)
            scores.append(classifier(data.embeds(rows).to(device), hidden).float().cpu())
    return torch.cat(scores)
