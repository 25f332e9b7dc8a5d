"""Image files through the frozen tower, as the features that adapters take.

Flows in: paths. Flows out: `SplitFeatures` of the good ones, a part at a time, so that a folder of
any size needs the memory of one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.sources.vectors import open_vectors
from pipelines.using.files import CHUNK, Faults, squares
from trainables.adapters.base import Adapter
from trainables.derived import Derived
from trainables.errors import DataError
from trainables.features import SplitFeatures
from trainables.shards import chunks

PART = 2048  # images


def embed_files(
    adapter: Adapter[Any], paths: Sequence[Path], faults: Faults, doing: str, size: int = PART
) -> Iterator[tuple[list[Path], SplitFeatures]]:
    """The good ones of `paths` and their features, in order, about `size` at a time."""
    if adapter.backbone.kind == "embeddings":
        yield from _given(adapter, paths, faults, size)
        return
    for part in chunks(_embedded(adapter, paths, faults, doing), max(1, size // CHUNK)):
        names = [path for some, _, _ in part for path in some]
        embeds = torch.cat([embeds for _, embeds, _ in part])  # (N, e)
        pixels = [pixels for _, _, pixels in part if pixels is not None]
        yield names, _features(adapter, names, embeds, torch.cat(pixels) if pixels else None)


def _given(
    adapter: Adapter[Any], paths: Sequence[Path], faults: Faults, size: int
) -> Iterator[tuple[list[Path], SplitFeatures]]:
    """Files of finished embeddings for an adapter of such: each row is called `file:row`."""
    width = adapter.backbone.embed_dim
    for path in paths:
        try:
            vectors = open_vectors([path], "image")
            if vectors is None or vectors.width != width:
                got = "none" if vectors is None else vectors.width
                faults.add(path, f"its vectors must have width {width}, got {got}")
                continue
            vectors.check()
        except DataError as error:
            faults.add(path, str(error))
            continue
        row = 0
        for some in vectors.chunks(size):
            names = [Path(f"{path}:{row + n}") for n in range(len(some))]
            yield names, _features(adapter, names, torch.from_numpy(some), None)
            row += len(some)


def _embedded(
    adapter: Adapter[Any], paths: Sequence[Path], faults: Faults, doing: str
) -> Iterator[tuple[list[Path], Tensor, Tensor | None]]:
    """Paths, the tower's outputs (B, e) and, for a method that changes the tower, pixels."""
    backbone = adapter.backbone
    for good in squares(paths, backbone.preprocess, faults, doing):
        if good:
            pixels = torch.stack([square for _, square in good])  # (B, 3, R, R)
            embeds = backbone.frozen_embeds(pixels)
            keep = adapter.image_block is not None
            yield [path for path, _ in good], embeds, pixels if keep else None


def _features(
    adapter: Adapter[Any], names: list[Path], embeds: Tensor, pixels: Tensor | None
) -> SplitFeatures:
    backbone = adapter.backbone
    return SplitFeatures(
        ids=[str(path) for path in names],
        image_embeds=embeds,
        pixels=pixels,
        tokens=backbone.tokenize([])[0],
        caption_rows=torch.zeros(0, dtype=torch.int64),
        groups=torch.arange(len(names)),
        derived=Derived(backbone, "files"),
    )
