"""Images a second through the frozen image tower, as a share of what the card can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line
from benchmarks.gpu.trials import clip
from benchmarks.models import SHAPES, pictures
from trainables.hardware import Precision, autocast, has_bf16
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images

# NVIDIA's data sheets of the H100 SXM and of the H200 SXM: bf16, dense.
VENDOR = 989.4  # TFLOP/s
PRECISIONS = ("fp32", "tf32", "bf16")
BATCHES = (64, 256, 1024, 4096)


def measure(scale: Scale) -> Iterator[Line]:
    peak = product(scale)
    yield Line("a large bf16 matrix product", peak, "TFLOP/s")
    if not scale.small:
        yield Line("the same, of what an H100's vendor states", 100 * peak / VENDOR, "%")
    for shape in ("B/16", "L/14"):
        tower, flops = clip(scale, shape, text_layers=1), operations(shape)
        for precision in PRECISIONS:
            if precision == "tf32" and scale.small:
                yield Line(f"{shape} tf32", why="no card")
                continue
            if precision == "bf16" and not has_bf16(scale.device):
                yield Line(f"{shape} bf16", why="no bf16 on this device")
                continue
            rate, batch, why = fastest(scale, tower, precision)
            yield Line(f"{shape} {precision}, {batch} at a time", rate, "images/s", why=why)
            if precision == "bf16" and not scale.small:
                share = 100 * rate * flops / (peak * 1e12)
                yield Line(f"{shape} {precision}, share of that product's rate", share, "%")


def product(scale: Scale) -> float:
    """TFLOP/s of one large product, the best of ten."""
    size = 256 if scale.small else 8192
    one, other = (torch.randn(size, size, device=scale.device).bfloat16() for _ in range(2))
    least = min(scale.seconds(lambda: one @ other) for _ in range(10))
    return 2 * size**3 / least / 1e12


def operations(shape: str) -> float:
    """Of an image, two each multiplication. Of the last block, all rows are keys and values, and
    one goes on."""
    (width, depth, _), patch = SHAPES[shape]["vision"], SHAPES[shape]["patch"]
    patches = (224 // patch) ** 2
    rows = patches + 1
    block = 24 * rows * width**2 + 4 * rows**2 * width
    last = 4 * rows * width**2 + 20 * width**2 + 4 * rows * width
    embedding = 2 * patches * 3 * patch**2 * width
    return float(embedding + (depth - 1) * block + last + 2 * width * SHAPES[shape]["joint"])


def fastest(scale: Scale, tower: Backbone, precision: str) -> tuple[float, int, str]:
    """The most images a second, at how many at a time, and what ended the trying."""
    best, at, why = 0.0, 0, ""
    for batch in (2, 4) if scale.small else BATCHES:
        try:
            pixels = pictures(min(batch, 64)).repeat(-(-batch // 64), 1, 1, 1)[:batch]
            embed = embedder(tower, pixels.to(scale.device), precision)
            embed()
            rounds = 1 if scale.small else 3
            seconds = min(scale.seconds(embed) for _ in range(rounds))
        except torch.OutOfMemoryError:
            why = f"{batch} at a time do not fit"
            torch.cuda.empty_cache()
            break
        if batch / seconds > best:
            best, at = batch / seconds, batch
    return best, at, why


def embedder(tower: Backbone, pixels: Tensor, precision: str) -> Callable[[], Tensor]:
    def embed() -> Tensor:
        with torch.no_grad(), _computed(precision, tower):
            return embed_images(tower, pixels)

    return embed


@contextmanager
def _computed(precision: str, tower: Backbone) -> Iterator[None]:
    if precision != "tf32":
        with autocast(cast(Precision, precision), tower.device):
            yield
        return
    place = torch.backends.cuda.matmul
    before, place.fp32_precision = place.fp32_precision, "tf32"
    try:
        yield
    finally:
        place.fp32_precision = before
