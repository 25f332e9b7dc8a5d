"""Image files through the frozen tower, or finished embeddings, as the features that adapters take.

Flows in: paths. Flows out: `SplitFeatures` of the good ones, a part at a time, so that a folder of
any size needs the memory of one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.use.files import CHUNK, Faults, squares
from pipelines.use.given import is_given, rows_of
from trainables.adapters.base import Adapter
from trainables.data.shards import chunks
from trainables.errors import ConfigError, DataError
from trainables.features.lazy_parts import LazyParts
from trainables.features.split import SplitFeatures
from trainables.models.image_tower import frozen_embeds

PART = 2048  # images


def embed_files(
    adapter: Adapter[Any], paths: Sequence[Path], faults: Faults, doing: str, size: int = PART
) -> Iterator[tuple[list[Path], SplitFeatures]]:
    """The good ones of `paths` and their features, in order, about `size` at a time."""
    for given, some in groupby(paths, is_given):
        make = _given if given else _seen
        yield from make(adapter, list(some), faults, doing, size)


def _seen(
    adapter: Adapter[Any], paths: Sequence[Path], faults: Faults, doing: str, size: int
) -> Iterator[tuple[list[Path], SplitFeatures]]:
    if adapter.backbone.kind == "embeddings":
        for path in paths:
            faults.add(path, "the run has no tower for images: give it files of embeddings")
        return
    for part in chunks(_embedded(adapter, paths, faults, doing), max(1, size // CHUNK)):
        names = [path for some, _, _ in part for path in some]
        embeds = torch.cat([embeds for _, embeds, _ in part])  # (N, e)
        pixels = [pixels for _, _, pixels in part if pixels is not None]
        yield names, features_of(adapter, names, embeds, torch.cat(pixels) if pixels else None)


def _given(
    adapter: Adapter[Any], paths: Sequence[Path], faults: Faults, doing: str, size: int
) -> Iterator[tuple[list[Path], SplitFeatures]]:
    for path in paths:
        try:
            yield from embed_given(adapter, path, doing, size)
        except DataError as error:
            faults.add(path, str(error).removeprefix(f"`{path}`").lstrip(",: "))


def embed_given(
    adapter: Adapter[Any], path: Path, doing: str, size: int
) -> Iterator[tuple[list[Path], SplitFeatures]]:
    """The finished embeddings at `path`, about `size` at a time."""
    if adapter.image_block is not None:
        raise ConfigError(
            f"`{path}`: `{adapter.train_config.name}` changes the image tower, which finished "
            "embeddings have passed: give images."
        )
    for names, embeds in rows_of(path, adapter.backbone.embed_dim, doing, size):
        yield names, features_of(adapter, names, embeds, None)


def _embedded(
    adapter: Adapter[Any], paths: Sequence[Path], faults: Faults, doing: str
) -> Iterator[tuple[list[Path], Tensor, Tensor | None]]:
    """Paths, the tower's outputs (B, e) and, for a method that changes the tower, pixels."""
    backbone = adapter.backbone
    for good in squares(paths, backbone.preprocess, faults, doing):
        if good:
            pixels = torch.stack([square for _, square in good])  # (B, 3, R, R)
            embeds = frozen_embeds(backbone, pixels)
            keep = adapter.image_block is not None
            yield [path for path, _ in good], embeds, pixels if keep else None


def features_of(
    adapter: Adapter[Any], names: Sequence[Path], embeds: Tensor, pixels: Tensor | None
) -> SplitFeatures:
    """Images by the tower's outputs (N, e) and, for a method that changes the tower, their pixels
    (N, 3, R, R), as adapters take them."""
    backbone = adapter.backbone
    return SplitFeatures(
        ids=[str(path) for path in names],
        image_embeds=embeds,
        pixels=pixels,
        tokens=backbone.tokenize([])[0],
        caption_rows=torch.zeros(0, dtype=torch.int64),
        groups=torch.arange(len(names)),
        lazy=LazyParts(backbone, "files"),
    )
