"""Both halves of the image tower against the plain transformers forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from tests import ROOT
from tests.tiny import tiny_clip
from trainables.errors import ConfigError, DataError
from trainables.models.backbone import Backbone
from trainables.models.image_tower import depth, embed_images, lower, upper
from trainables.models.load import load_backbone

SHAPES: dict[str, dict[str, Any]] = {  # the proportions of the real ones
    "B/32": {"vision_width": 48, "heads": 4, "layers": 3, "patch": 16},
    "B/16": {"vision_width": 48, "heads": 4, "layers": 3, "patch": 8},
    "L/14": {"vision_width": 64, "text_width": 48, "heads": 4, "layers": 4, "patch": 4},
}


def pixels(count: int = 5, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 32, 32), generator=random, dtype=torch.uint8)


def plain(backbone: Backbone, images: Tensor) -> Tensor:
    values = backbone.preprocess.normalise(images)
    embeds: Tensor = backbone.model.get_image_features(pixel_values=values).pooler_output
    return embeds


def assert_close(ours: Tensor, reference: Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


@pytest.fixture(scope="module", params=[*SHAPES, "siglip"])
def tower(
    request: pytest.FixtureRequest, siglip: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Backbone:
    if request.param == "siglip":
        return siglip
    return load_backbone(str(tiny_clip(tmp_path_factory.mktemp("clip"), **SHAPES[request.param])))


def test_cut_anywhere_it_equals_the_plain_forward(tower: Backbone) -> None:
    reference = plain(tower, pixels())
    assert_close(embed_images(tower, pixels()), reference)
    for block in range(depth(tower) + 1):
        hidden = lower(tower, pixels(), block)
        assert hidden.shape[0] == 5
        assert_close(upper(tower, hidden, block), reference)


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_adapted_upper_blocks_equal_the_plain_forward(
    tower: Backbone, layers: int
) -> None:
    torch.manual_seed(0)
    if layers > depth(tower):
        pytest.skip("the tower is not that high")
    copy, block = tower.isolated(), depth(tower) - layers
    names = "|".join(map(str, range(block, depth(tower))))
    config = LoraConfig(
        r=2,
        target_modules=rf"encoder\.layers\.({names})\.(self_attn\.(q|k|v|out)_proj|mlp\.fc\d)",
        init_lora_weights=False,
    )
    inject_adapter_in_model(config, copy.model.vision_model)
    trained = [p for p in copy.model.parameters() if p.requires_grad]
    assert trained
    weights = torch.randn(5, tower.embed_dim)
    hidden = lower(tower, pixels(), block)  # of the frozen model: it is the same below
    ours, reference = upper(copy, hidden, block), plain(copy, pixels())
    assert_close(ours.detach(), reference.detach())
    gradients = [torch.autograd.grad((x * weights).sum(), trained) for x in (ours, reference)]
    scale = max(gradient.abs().max() for gradient in gradients[1])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-5 * scale


def by_hand(backbone: Backbone, images: Tensor, prompts: Tensor) -> Tensor:
    """The plain forward with vectors behind the patches, new ones before each of the blocks."""
    tower = backbone.model.vision_model
    hidden = tower.embeddings(backbone.preprocess.normalise(images))
    patches = hidden.shape[1]
    first, *others = (one.expand(len(images), -1, -1) for one in prompts)
    hidden = torch.cat([hidden, first], 1)
    if backbone.kind == "clip":  # the papers' code appends them before this norm
        hidden = tower.pre_layrnorm(hidden)
    for number, block in enumerate(tower.encoder.layers, -1):
        if 0 <= number < len(others):
            hidden = torch.cat([hidden[:, :patches], others[number]], 1)
        hidden = block(hidden, None)
    hidden = tower.post_layernorm(hidden)
    if backbone.kind == "siglip":
        return tower.head(hidden[:, :patches])
    return backbone.model.visual_projection(hidden[:, 0])


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_prompts_equal_the_plain_forward_with_gradients(tower: Backbone, blocks: int) -> None:
    if blocks > depth(tower):
        pytest.skip("the tower is not that high")
    torch.manual_seed(0)
    prompts = torch.randn(blocks, 3, tower.model.config.vision_config.hidden_size).requires_grad_()
    weights = torch.randn(5, tower.embed_dim)
    ours = upper(tower, lower(tower, pixels(), 0), 0, prompts)
    reference = by_hand(tower, pixels(), prompts)
    assert_close(ours.detach(), reference.detach())
    assert not torch.allclose(ours, plain(tower, pixels()), rtol=1e-3)
    one, other = (torch.autograd.grad((x * weights).sum(), prompts)[0] for x in (ours, reference))
    for a, b in zip(one, other, strict=True):  # of each block
        assert b.abs().max() > 0
        assert_close(a, b)


def test_prompts_that_do_not_fit_are_refused(tower: Backbone) -> None:
    high, width = depth(tower), tower.model.config.vision_config.hidden_size
    hidden = lower(tower, pixels(), 0)
    with pytest.raises(ConfigError, match=f"for 1 to {high} blocks, got {high + 1} before block 0"):
        upper(tower, hidden, 0, torch.zeros(high + 1, 2, width))
    with pytest.raises(ConfigError, match="got 1 before block 1"):
        upper(tower, hidden, 1, torch.zeros(1, 2, width))


def test_no_images_are_refused(tower: Backbone) -> None:
    with pytest.raises(DataError, match="at least 1 image, got 0"):
        embed_images(tower, pixels(0))


def test_a_cut_outside_the_tower_is_refused(tower: Backbone) -> None:
    high = depth(tower)
    with pytest.raises(ConfigError, match=f"has {high} blocks.* got {high + 1}"):
        lower(tower, pixels(), high + 1)


def test_the_real_clip_equals_the_plain_forward() -> None:
    folder = ROOT.parent / "shared" / "data" / "clip-flickr8k"
    if not folder.is_dir():
        pytest.skip("the small real CLIP is not here (../shared/data/clip-flickr8k)")
    backbone = load_backbone(str(folder))
    size = backbone.preprocess.size
    images = torch.randint(256, (3, 3, size, size), dtype=torch.uint8)
    assert_close(embed_images(backbone, images), plain(backbone, images))
