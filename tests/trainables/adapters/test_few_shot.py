"""The few-shot methods against their papers' formulas: losses, and every gradient.

The references use transformers' own modules in the plain way: one caption at a time, padded to the
tower's length, pixels through the whole image tower. They share no code with what they check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.contract import ALL, CLASSES, CLASSIFIERS, LEARNING, make, pictures, trained
from tests.tiny import tiny_clip
from trainables.adapters.base import Adapter
from trainables.data.batches import Batch
from trainables.features.classes import ENSEMBLE
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images, lower
from trainables.models.load import load_backbone

NAMES = CLASSES.names
LABELS = torch.tensor([2, 0, 4, 1, 1, 3])
Formula = Callable[[Any, Backbone], Tensor]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Three blocks, towers and joint space of three widths."""
    folder = tmp_path_factory.mktemp("clip")
    return load_backbone(str(tiny_clip(folder, layers=3, vision_width=48)))


def batch_of(adapter: Adapter[Any], backbone: Backbone) -> Batch:
    """Six labelled images and the five classes, as a step gets them."""
    block, frozen = adapter.image_block, adapter.frozen_text
    with torch.no_grad():
        return Batch(
            image_embeds=embed_images(backbone, pictures()[:6]),
            hidden=None if block is None else lower(backbone, pictures()[:6], block),
            tokens=CLASSES.tokens(backbone, adapter.class_words, adapter.added_tokens),
            text_embeds=CLASSES.text_embeds(backbone, adapter.frozen_words) if frozen else None,
            image_groups=LABELS,
            caption_groups=torch.arange(5),
            progress=torch.tensor(0.5),
        )


# -- the towers, the plain way --------------------------------------------------------------------


def words(backbone: Backbone, text: str) -> list[Tensor]:
    """Embedding rows of a text: SOS, its tokens, EOS."""
    ids = backbone.tokenizer(text)["input_ids"]
    return list(backbone.model.text_model.embeddings.token_embedding.weight[ids])


def text_row(
    backbone: Backbone, row: Sequence[Tensor], deep: Sequence[Tensor] = (), first: int = 1
) -> Tensor:
    """The embedding (e,) of one caption given as embedding rows; `deep` (P, d) each take the places
    from `first` on before blocks 1, 2, ..."""
    tower = backbone.model.text_model
    padded = torch.zeros(77, backbone.text_width)
    padded[: len(row)] = torch.stack(list(row))
    hidden = (padded + tower.embeddings.position_embedding.weight)[None]
    mask = torch.full((77, 77), float("-inf")).triu(1)[None, None]
    for number, block in enumerate(tower.encoder.layers):
        if 1 <= number <= len(deep):
            vectors = deep[number - 1]
            rest = hidden[:, first + len(vectors) :]
            hidden = torch.cat([hidden[:, :first], vectors[None], rest], 1)
        hidden = block(hidden, mask)
    return backbone.model.text_projection(tower.final_layer_norm(hidden[0, len(row) - 1]))


def image_rows(backbone: Backbone, prompts: Sequence[Tensor] = ()) -> Tensor:
    """The embeddings (B, e) of the six images, with `prompts` (P, w) behind the patches, new ones
    before each block; through the norm in front of block 0, as the papers' code has them."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    tower = backbone.model.vision_model
    hidden = tower.embeddings((pictures()[:6] / 255 - mean) / std)
    patches = hidden.shape[1]
    if prompts:
        hidden = torch.cat([hidden, prompts[0].expand(6, -1, -1)], 1)
    hidden = tower.pre_layrnorm(hidden)
    for number, block in enumerate(tower.encoder.layers):
        if 1 <= number < len(prompts):
            hidden = torch.cat([hidden[:, :patches], prompts[number].expand(6, -1, -1)], 1)
        hidden = block(hidden, None)
    return backbone.model.visual_projection(tower.post_layernorm(hidden[:, 0]))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def classes(backbone: Backbone, template: str) -> Tensor:
    """The classes in a template: (C, e)."""
    return torch.stack([text_row(backbone, words(backbone, template.format(n))) for n in NAMES])


def cross_entropy(backbone: Backbone, similarity: Tensor) -> Tensor:
    return F.cross_entropy(backbone.model.logit_scale.exp() * similarity, LABELS)


# -- the methods ----------------------------------------------------------------------------------


def coop(adapter: Any, backbone: Backbone) -> Tensor:
    place, rows = adapter.config.class_position, []
    for n, name in enumerate(NAMES):
        own = adapter.vectors[n] if adapter.config.class_specific else adapter.vectors
        sos, *label, dot, eos = words(backbone, name + ".")
        half = len(own) // 2
        row = {
            "end": [*own, *label, dot],
            "middle": [*own[:half], *label, *own[half:], dot],
            "front": [*label, *own, dot],
        }[place]
        rows.append(text_row(backbone, [sos, *row, eos]))
    return cross_entropy(backbone, unit(image_rows(backbone)) @ unit(torch.stack(rows)).T)


def conditional(adapter: Any, backbone: Backbone, divisor: float = 1.0) -> Tensor:
    images, scores = unit(image_rows(backbone)), []
    for image in images:
        shift = torch.zeros(backbone.text_width)
        if adapter.meta is not None:
            one, _, two = adapter.meta
            shift = two.weight @ (one.weight @ image + one.bias).relu() + two.bias
        rows = []
        for name in NAMES:
            sos, *label, eos = words(backbone, name + ".")
            own = [(vector + shift) / divisor for vector in adapter.vectors]
            rows.append(text_row(backbone, [sos, *own, *label, eos]))
        scores.append(unit(torch.stack(rows)) @ image)
    return cross_entropy(backbone, torch.stack(scores))


def kgcoop(adapter: Any, backbone: Backbone) -> Tensor:
    rows = []
    for name in NAMES:
        sos, *label, eos = words(backbone, name + ".")
        rows.append(text_row(backbone, [sos, *adapter.vectors, *label, eos]))
    texts, frozen = unit(torch.stack(rows)), unit(classes(backbone, "a photo of a {}."))
    loss = cross_entropy(backbone, unit(image_rows(backbone)) @ texts.T)
    return loss + 8 * (1 - (texts * frozen).sum(1).mean())


def deep_texts(backbone: Backbone, vectors: Tensor, text: str) -> Tensor:
    """Classes with a deep prompt (J, P, d) behind SOS, normalised."""
    rows = []
    for name in NAMES:
        sos, *label, eos = words(backbone, text.format(name))
        rows.append(text_row(backbone, [sos, *vectors[0], *label, eos], list(vectors[1:])))
    return unit(torch.stack(rows))


def maple(adapter: Any, backbone: Backbone) -> Tensor:
    text = {2: "of a {}.", 5: "{}."}[adapter.config.n_ctx]
    prompts = [v @ m.weight.T + m.bias for v, m in zip(adapter.vectors, adapter.maps, strict=True)]
    texts = deep_texts(backbone, adapter.vectors, text)
    return cross_entropy(backbone, unit(image_rows(backbone, prompts)) @ texts.T)


def promptsrc(adapter: Any, backbone: Backbone) -> Tensor:
    tau = backbone.model.logit_scale.exp()
    texts = deep_texts(backbone, adapter.text, "{}.")
    images = unit(image_rows(backbone, list(adapter.image)))
    frozen_images = unit(image_rows(backbone))
    every = [unit(classes(backbone, template)) for template in ENSEMBLE.split("|")]
    assert len(every) == 7
    frozen_texts = unit(torch.stack(every).mean(0))
    logits, frozen = tau * images @ texts.T, tau * frozen_images @ frozen_texts.T
    kept = F.kl_div(logits.log_softmax(1), frozen.log_softmax(1), reduction="sum", log_target=True)
    return (
        F.cross_entropy(logits, LABELS)
        + 25 * F.l1_loss(texts, frozen_texts)
        + 10 * F.l1_loss(images, frozen_images)
        + kept / logits.numel()
    )


def clip_adapter(adapter: Any, backbone: Backbone) -> Tensor:
    one, _, two, _ = adapter.bottleneck
    assert one.weight.shape == (4, 16)
    images = image_rows(backbone)
    made = ((images @ one.weight.T).relu() @ two.weight.T).relu()
    texts = unit(classes(backbone, "a photo of a {}."))
    return cross_entropy(backbone, unit(0.2 * made + 0.8 * images) @ texts.T)


def linear_probe(adapter: Any, backbone: Backbone) -> Tensor:
    images = unit(image_rows(backbone))
    return cross_entropy(backbone, images @ adapter.weight.T + adapter.bias)


def tip_adapter(adapter: Any, backbone: Backbone) -> Tensor:
    images, texts = unit(image_rows(backbone)), unit(classes(backbone, "a photo of a {}."))
    values = torch.eye(5)[torch.arange(16) % 5]  # (N, C)
    cache = (-1.0 * (1 - images @ adapter.keys.T)).exp() @ values
    logits = backbone.model.logit_scale.exp() * images @ texts.T + 1.17 * cache
    return F.cross_entropy(logits, LABELS)


def mip(adapter: Any, backbone: Backbone) -> Tensor:
    return conditional(adapter, backbone, 32**0.5)


def mip_rows(adapter: Any, backbone: Backbone) -> Tensor:
    total = backbone.model.text_projection.weight.sum(0)  # y
    return conditional(adapter, backbone, float(total.abs().sum().sqrt()))


def two_stage(adapter: Any, backbone: Backbone) -> Tensor:
    """Its first stage: trained norms in the places of the frozen ones."""
    towers = replaced(backbone, adapter.norms, lambda norm: (norm.weight, norm.bias))
    texts = unit(classes(towers, "a photo of a {}."))
    return cross_entropy(towers, unit(image_rows(towers)) @ texts.T)


def singular_values(adapter: Any, backbone: Backbone) -> Tensor:
    def whole(matrix: Any) -> tuple[Tensor, Tensor]:
        own = matrix.frozen[0]
        left, _, right = torch.linalg.svd(own.weight.double(), full_matrices=False)
        return (left @ torch.diag(matrix.values.double()) @ right).float(), own.bias

    towers = replaced(backbone, adapter.matrices, whole)
    assert len(adapter.matrices) == 2 * 3 * 6  # two towers of three blocks
    texts = unit(classes(towers, "a photo of a {}."))
    return cross_entropy(towers, unit(image_rows(towers)) @ texts.T)


def replaced(backbone: Backbone, modules: Any, made: Callable[[Any], Any]) -> Backbone:
    """The towers with other weights and biases, through which gradients flow."""
    copy = backbone.isolated()
    for name, module in modules.items():
        own = copy.model.get_submodule(name.replace("-", "."))
        del own.weight, own.bias
        own.weight, own.bias = made(module)
    return copy


FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(("coop", "coop middle", "coop front", "coop specific"), coop),
    "cocoop": conditional,
    "kgcoop": kgcoop,
    "mip": mip,
    "mip plain": mip_rows,
    **dict.fromkeys(("maple", "maple shallow"), maple),
    **dict.fromkeys(("promptsrc", "promptsrc shallow"), promptsrc),
    "clip_adapter": clip_adapter,
    **dict.fromkeys(("linear_probe", "linear_probe text"), linear_probe),
    "tip_adapter tuned": tip_adapter,
    "two_stage": two_stage,
    "singular_values": singular_values,
}


@pytest.mark.parametrize("variant", FORMULAS)
def test_losses_and_gradients_equal_the_formula(variant: str, wide: Backbone) -> None:
    adapter = make(variant, wide)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from where it starts, where some gradients are 0
        for parameter in adapter.parameters():
            size = float(parameter.std()) or 0.02
            parameter.add_(0.3 * size * torch.randn(parameter.shape, generator=random))
    names, parameters = zip(
        *((n, p) for n, p in trained(adapter).items() if (variant, n) != ("two_stage", "rows")),
        strict=True,
    )
    ours, reference = adapter(batch_of(adapter, wide))[0], FORMULAS[variant](adapter, wide)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, parameters) for loss in (ours, reference)]
    for name, one, other in zip(names, *gradients, strict=True):
        assert other.abs().max() > 0, name
        assert (one - other).abs().max() <= 1e-5 * other.abs().max(), name


def test_the_formulas_cover_all_that_is_trained() -> None:
    few_shot = {CLASSIFIERS[name][0] for name in LEARNING if name in CLASSIFIERS}
    assert {ALL[variant][0] for variant in FORMULAS} == few_shot - {"lora", "projection"}
