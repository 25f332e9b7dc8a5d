"""The adapters that the contract is tested on, and the few steps every test of them takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tiny import caption
from trainables.adapters.base import Adapter
from trainables.adapters.registry import build, make_config
from trainables.backbone import Backbone
from trainables.data import Batch
from trainables.image_tower import lower
from trainables.text_tower import embed_text

# Each line is one adapter in one configuration that takes another path through its code.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero_shot": ("zero_shot", {}),
    "zero_shot ensemble": ("zero_shot", {"adapter.template": "{}|a photo of {}."}),
    "soft_prompt": ("soft_prompt", {"adapter.n_ctx": 4}),
    "soft_prompt deep": ("soft_prompt", {"adapter.n_ctx": 2, "adapter.depth": 1}),
    "soft_prompt words": (
        "soft_prompt",
        {"adapter.n_ctx": 3, "adapter.init": "a photo", "adapter.place": "before_eot"},
    ),
    "soft_prompt siglip": (
        "soft_prompt",
        {"loss.kind": "siglip", "temperature.policy": "learned"},
    ),
    "lora": ("lora", {}),
    "lora both": ("lora", {"adapter.tower": "both", "adapter.targets": "all"}),
    "lora vision": ("lora", {"adapter.tower": "vision", "adapter.layers": 2}),
    "projection": ("projection", {}),
    "projection bias": ("projection", {"adapter.side": "image", "adapter.bias": True}),
}
TRAINED = [name for name, (adapter, _) in VARIANTS.items() if adapter != "zero_shot"]


def pictures() -> Tensor:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (16, 3, 32, 32), generator=random, dtype=torch.uint8)
    pixels[15] = pixels[0]
    return pixels


def batch_for(backbone: Backbone, block: int = 0) -> Batch:
    """16 images, as the tower has them before `block`, with 2 captions each; the last image has the
    bytes of the first."""
    pixels = pictures()
    groups = torch.arange(16)
    groups[15] = 0
    numbers = [i % 15 for i in range(16)]
    tokens, _ = backbone.tokenize([caption(i, v) for i in numbers for v in range(2)])
    with torch.no_grad():
        embeds = backbone.embed_images(pixels)
        hidden = lower(backbone, pixels, block)
        texts = embed_text(backbone, tokens)
    captions = groups.repeat_interleave(2)
    return Batch(embeds, hidden, tokens, texts, groups, captions, 0.0)


def make(variant: str, backbone: Backbone, **values: Any) -> Adapter[Any]:
    name, settings = VARIANTS[variant]
    return build(make_config(name, {**settings, **values}), backbone)


def trained(adapter: Adapter[Any]) -> dict[str, Tensor]:
    return {n: p for n, p in adapter.named_parameters() if p.requires_grad}


def train(adapter: Adapter[Any], batch: Batch, steps: int = 25, lr: float = 5e-3) -> list[float]:
    """The losses, the one after the last step too."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(trained(adapter).values(), lr=lr)
    losses = []
    for _ in range(steps):
        loss, numbers = adapter(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(numbers["loss"])
    return [*losses, adapter(batch)[1]["loss"]]


def outputs(adapter: Adapter[Any], batch: Batch) -> Tensor:
    """Both embeddings as the metrics see them, in evaluation mode."""
    adapter.eval()
    with torch.no_grad():
        found = adapter.predict(batch)
    return torch.cat([found.image_embeds, found.text_embeds])
