"""What several adapters do alike, as functions: adapters never import or subclass each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Classifier, product
from trainables.config import Value, check
from trainables.data.batches import Tokens
from trainables.errors import ConfigError
from trainables.files import write_json
from trainables.models.backbone import Backbone
from trainables.models.image_tower import depth as image_depth
from trainables.models.model_folder import no_bars
from trainables.models.text_plan import Prompt
from trainables.models.text_tower import embed_text, word_vectors

WORDS = "a photo of a"
# How CoOp trains (Zhou et al. 2022), and most that followed it.
COOP_OPTIM: dict[str, Value] = {
    "optim.kind": "sgd",
    "optim.lr": 2e-3,
    "optim.weight_decay": 5e-4,
    "optim.schedule": "coop",
    "optim.clip_norm": 0.0,
}
PROMPTS = 4096  # class prompts of several images that are embedded at a time


def context(backbone: Backbone, n_ctx: int, init: str, std: float) -> Tensor:
    """Vectors to start a prompt with: (M, d). `init` is "random" or words, whose embeddings the
    first ones are; the others are drawn from N(0, std)."""
    vectors = torch.randn(n_ctx, backbone.text_width) * std
    if init != "random":
        words = word_vectors(backbone, init)[:n_ctx]
        vectors[: len(words)] = words.cpu()
    return vectors


def check_context(n_ctx: int, init: str, std: float) -> None:
    """The rules for the fields that describe a prompt."""
    check(n_ctx >= 1, "adapter.n_ctx", "at least 1", n_ctx)
    check(bool(init.strip()), "adapter.init", '"random" or some words', init)
    check(std > 0, "adapter.init_std", "above 0", std)


def deep_context(backbone: Backbone, depth: int, n_ctx: int, init: str, std: float) -> Tensor:
    """Vectors for the first `depth` blocks, or for all where a tower has fewer: (J, M, d). The
    first block's are a `context`, the others' are drawn."""
    most = min(image_depth(backbone), depth)
    first = context(backbone, n_ctx, init, std)
    blocks = min(len(backbone.model.text_model.encoder.layers), most)
    return torch.cat([first[None], torch.randn(blocks - 1, *first.shape) * std])


def words_behind(n_ctx: int) -> str:
    """The words of `WORDS` that stay in front of a class name when vectors take the place of the
    first `n_ctx`."""
    return " ".join([*WORDS.split()[n_ctx:], "{}."])


def meta_network(backbone: Backbone) -> nn.Sequential:
    """CoCoOp's two layers, from an image's feature to a shift of the context: (B, e) to (B, d)."""
    width = max(4, backbone.embed_dim // 16)
    return nn.Sequential(
        nn.Linear(backbone.embed_dim, width), nn.ReLU(), nn.Linear(width, backbone.text_width)
    )


class Tiles:
    """Class names repeated for B images, and kept, so that the text tower's plan of them is kept
    too."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tokens, Tokens]] = {}

    def __call__(self, tokens: Tokens, images: int) -> Tokens:
        if images not in self.kept or self.kept[images][0] is not tokens:
            rows = torch.arange(len(tokens)).repeat(images)
            self.kept[images] = (tokens, tokens.select(rows))
        return self.kept[images][1]


def conditional(
    backbone: Backbone, tiles: Tiles, tokens: Tokens, contexts: Callable[[Tensor], Tensor]
) -> Classifier:
    """A classifier whose prompts have a context of each image's own: `contexts` is (B, e) to (B, M,
    d)."""
    classes = len(tokens)

    def some(images: Tensor) -> Tensor:
        owners = torch.arange(len(images)).repeat_interleave(classes)
        prompt = Prompt(contexts(images), of=owners)
        texts = embed_text(backbone, tiles(tokens, len(images)), prompt)
        texts = F.normalize(texts.float(), dim=-1).unflatten(0, (-1, classes))  # (B, C, e)
        return product(texts, images[:, :, None])[:, :, 0]

    def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
        del hidden
        images = F.normalize(image_embeds.float(), dim=-1)
        return torch.cat([some(part) for part in images.split(max(1, PROMPTS // classes))])

    return similarity


def check_length(vectors: Tensor, n_ctx: int, depth: int) -> None:
    """A prompt whose places deeper blocks take again must have as many vectors as those blocks."""
    if depth and len(vectors) != n_ctx:
        raise ConfigError(
            f"a prompt with `adapter.depth` {depth} must keep its {n_ctx} vectors, got "
            f"{len(vectors)}: deeper blocks take the places of the first's."
        )


def unit(images: Tensor) -> Tensor:
    """`images` of unit length, in float64: a solution in closed form loses digits."""
    return F.normalize(images.double(), dim=-1)


def write_model(folder: Path, backbone: Backbone, model: Any) -> list[Path]:
    """Write a plain model, its tokenizer, and the configuration of its preprocessing."""
    with no_bars():
        model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", processor_config(backbone))
    return sorted(folder.iterdir())


def load_model(folder: Path, backbone: Backbone) -> str:
    """The expression that loads what `write_model` wrote."""
    return f'{type(backbone.model).__name__}.from_pretrained("{folder}")'


def processor_config(backbone: Backbone) -> dict[str, Any]:
    """The preprocessing as transformers' image processors write it down."""
    how = backbone.preprocess
    square = {"height": how.size, "width": how.size}
    crops = how.kind == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor" if crops else "SiglipImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": how.resize} if crops else square,
        "resample": {"bilinear": 2, "bicubic": 3}[how.mode],
        "do_center_crop": crops,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }
