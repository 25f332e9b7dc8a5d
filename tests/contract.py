"""The adapters that the contract is tested on, and the few steps every test of them takes."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny import caption, tiny_lm
from trainables.adapters.base import Adapter
from trainables.adapters.registry import ADAPTERS, adapters_for, build, make_config
from trainables.data.batches import Batch
from trainables.features.classes import Classes
from trainables.features.lazy_parts import LazyParts
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images, lower
from trainables.models.text_tower import embed_text
from trainables.training.sampler import CaptionBatches, ClassBatches

# Every adapter with its recipe, and configurations that take another path through its code.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in adapters_for("retrieval")},
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
    "lora both": ("lora", {"adapter.tower": "both", "adapter.targets": "all"}),
    "lora vision": ("lora", {"adapter.tower": "vision", "adapter.layers": 2}),
    "projection bias": ("projection", {"adapter.side": "image", "adapter.bias": True}),
}
TRAINED = [name for name, (adapter, _) in VARIANTS.items() if adapter != "zero_shot"]
# The same for images among classes.
CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{name} classes" if name in VARIANTS else name: (name, {})
        for name in adapters_for("classification")
    },
    "zero_shot classes ensemble": ("zero_shot", {"adapter.template": "a {}.|a photo of a {}."}),
    "lora classes": ("lora", {"adapter.dropout": 0.0}),
    "coop": ("coop", {"adapter.n_ctx": 4}),
    "coop middle": ("coop", {"adapter.n_ctx": 3, "adapter.class_position": "middle"}),
    "coop front": ("coop", {"adapter.init": "a photo", "adapter.class_position": "front"}),
    "coop specific": ("coop", {"adapter.n_ctx": 2, "adapter.class_specific": True}),
    "maple shallow": ("maple", {"adapter.depth": 1, "adapter.n_ctx": 5}),
    "promptsrc shallow": ("promptsrc", {"adapter.depth": 1, "adapter.init": "random"}),
    "mip plain": (
        "mip",
        {"adapter.meta": False, "adapter.terms": "rows", "adapter.fill": "same"}
        | {"adapter.length": "words", "adapter.divisor": "norm"},
    ),
    "tip_adapter tuned": ("tip_adapter", {"adapter.tune": True}),
    "linear_probe text": ("linear_probe", {"adapter.init": "text"}),
    "linear_probe lbfgs": ("linear_probe", {"adapter.solver": "lbfgs"}),
    "linear_probe lbfgs text": (
        "linear_probe",
        {"adapter.solver": "lbfgs", "adapter.init": "text"},
    ),
    "prolip projection": ("prolip", {"adapter.place": "projection"}),
}
# And for captions in new words.
BRIEF = {"adapter.prefix_length": 3, "adapter.layers": 2, "adapter.heads": 4}
BRIEF |= {"adapter.clip_length": 2, "adapter.max_tokens": 6, "adapter.lora_dropout": 0.0}
SPEAKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "nearest_caption": ("nearest_caption", {}),
    **{
        f"prefix_captioner {mapper} {mode}": (
            "prefix_captioner",
            BRIEF | {"adapter.mapper": mapper, "adapter.lm_mode": mode},
        )
        for mapper in ("mlp", "transformer")
        for mode in ("frozen", "lora", "full")
    },
    "prefix_captioner paper": ("prefix_captioner", BRIEF | {"adapter.paper": True}),
    "prefix_captioner raw": (
        "prefix_captioner",
        BRIEF | {"adapter.normalize": False, "adapter.decoding": "greedy"},
    ),
    "prefix_captioner frames": (
        "prefix_captioner",
        BRIEF | {"adapter.pooling": "attention", "adapter.lm_mode": "frozen"},
    ),
}
ALL = {**VARIANTS, **CLASSIFIERS, **SPEAKERS}
UNTRAINED = (
    *("zero_shot", "zero_shot ensemble", "zero_shot classes", "zero_shot classes ensemble"),
    "nearest_caption",
)
# Heads that are fitted at the end of the only epoch, and never step.
FITTED = (
    *("tip_adapter", "kernel_ridge", "gda", "linear_probe lbfgs", "linear_probe lbfgs text"),
    *("lp_plus", "ss_text", "prolip", "prolip projection"),
)
LEARNING = [name for name in ALL if name not in (*UNTRAINED, *FITTED)]
FUSING = [name for name in LEARNING if ADAPTERS[ALL[name][0]].FUSES]
TURNING = [name for name in LEARNING if name not in SPEAKERS]  # what `sweep` is for
CLASSES = Classes(("red dog", "green cat", "white boat", "black car", "blue house"))


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
        embeds = embed_images(backbone, pixels)
        hidden = lower(backbone, pixels, block)
        texts = embed_text(backbone, tokens)
    captions = groups.repeat_interleave(2)
    return Batch(embeds, hidden, tokens, texts, groups, captions, 0.0)


def examples(backbone: Backbone) -> SplitFeatures:
    """The same 16 images, labelled."""
    batch = batch_for(backbone)
    return SplitFeatures(
        ids=[str(n) for n in range(16)],
        image_embeds=batch.image_embeds,
        pixels=pictures(),
        tokens=batch.tokens,
        caption_rows=torch.arange(16).repeat_interleave(2),
        groups=batch.image_groups,
        lazy=LazyParts(backbone, "train"),
        labels=torch.arange(16) % 5,
        classes=CLASSES,
    )


def written(backbone: Backbone) -> SplitFeatures:
    """The same images with the words of their captions, and 4 frames each."""
    texts = [caption(i % 15, v) for i in range(16) for v in range(2)]
    data = examples(backbone)
    shift = torch.randn(16, 4, backbone.embed_dim, generator=torch.Generator().manual_seed(1))
    return replace(
        data,
        labels=None,
        classes=None,
        frame_embeds=data.image_embeds[:, None] + shift,
        lazy=LazyParts(backbone, "train", kept={"texts": texts}),
    )


@functools.cache
def language_model_folder() -> tempfile.TemporaryDirectory[str]:
    """A tiny language model, until the tests end."""
    folder = tempfile.TemporaryDirectory(prefix="lm-")
    tiny_lm(Path(folder.name))
    return folder


def make(variant: str, backbone: Backbone, **values: Any) -> Adapter[Any]:
    name, settings = ALL[variant]
    if variant in SPEAKERS:
        if name == "prefix_captioner":
            settings = {"adapter.lm": language_model_folder().name, **settings}
        values = {"batch_size": 16, **settings, **values}
        return build(make_config(name, values), backbone, written(backbone))
    if variant in VARIANTS:
        return build(make_config(name, {**settings, **values}), backbone)
    values = {"task": "classification", "batch_size": 16, **settings, **values}
    return build(make_config(name, values), backbone, examples(backbone))


def batch_of(adapter: Adapter[Any], backbone: Backbone) -> Batch:
    """The fixed batch of the adapter's task."""
    if adapter.train_config.task == "retrieval":
        return batch_for(backbone)
    if adapter.train_config.task == "captioning":
        return CaptionBatches(written(backbone), adapter)(0, 1)
    return ClassBatches(examples(backbone), adapter)(0, 1)


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
    """Both embeddings, the classes' scores, or the letters of what is said, as the metrics see
    them, in evaluation mode."""
    adapter.eval()
    with torch.no_grad():
        if adapter.train_config.task == "classification":
            classifier = adapter.classifier(batch.tokens, batch.text_embeds)
            return classifier(batch.image_embeds, batch.hidden)
        if adapter.train_config.task == "captioning":
            said = adapter.captions(batch.image_embeds, batch.frames)
            assert len(said) == len(batch.image_embeds)
            letters = torch.tensor([[ord(c) for c in text.ljust(200)] for text in said])
            return letters[:, :200].float()
        found = adapter.predict(batch)
    return torch.cat([found.image_embeds, found.text_embeds])
