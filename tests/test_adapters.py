"""The contract, for every adapter of the registry, and what each promises on its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from trainables.backbone import Backbone, load_backbone
from transformers import CLIPConfig, CLIPModel

from tests.tiny import caption
from trainables.adapters.base import Adapter
from trainables.adapters.registry import ADAPTERS, build, make_config
from trainables.data import Batch
from trainables.errors import ConfigError, DataError

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
    "lora vision": ("lora", {"adapter.tower": "vision", "adapter.layers": 1}),
    "projection": ("projection", {}),
    "projection bias": ("projection", {"adapter.side": "image", "adapter.bias": True}),
}
TRAINED = [name for name, (adapter, _) in VARIANTS.items() if adapter != "zero_shot"]


@pytest.fixture(scope="module")
def backbone(clip: Path) -> Backbone:
    return load_backbone(str(clip))


@pytest.fixture(scope="module")
def batch(backbone: Backbone) -> Batch:
    """16 images with 2 captions each; the last image has the bytes of the first."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (16, 3, 32, 32), generator=random, dtype=torch.uint8)
    pixels[15] = pixels[0]
    groups = torch.arange(16)
    groups[15] = 0
    numbers = [i % 15 for i in range(16)]
    tokens, _ = backbone.tokenize([caption(i, v) for i in numbers for v in range(2)])
    with torch.no_grad():
        embeds = backbone.embed_images(pixels)
    return Batch(embeds, pixels, tokens, groups, groups.repeat_interleave(2), 0.0)


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


# -- the contract -------------------------------------------------------------------------------


def test_variants_cover_the_registry() -> None:
    assert {name for name, _ in VARIANTS.values()} == ADAPTERS.keys()


@pytest.mark.parametrize("variant", TRAINED)
def test_the_loss_falls(variant: str, backbone: Backbone, batch: Batch) -> None:
    losses = train(make(variant, backbone, **{"temperature.scale": 10.0}), batch)
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_backbone_is_never_changed(variant: str, backbone: Backbone, batch: Batch) -> None:
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    structure = str(backbone.model)
    adapter = make(variant, backbone)
    if trained(adapter):
        train(adapter, batch, steps=2, lr=0.1)
    outputs(adapter, batch)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert str(backbone.model) == structure
    assert not backbone.model.training
    for name, parameter in backbone.model.named_parameters():
        assert parameter.grad is None, name
        assert not parameter.requires_grad, name


@pytest.mark.parametrize("variant", TRAINED)
def test_all_that_is_trained_gets_a_gradient_and_is_the_adapters_own(
    variant: str, backbone: Backbone, batch: Batch
) -> None:
    adapter = make(variant, backbone)
    # LoRA's A has none before B has left 0.
    train(adapter, batch, steps=1)
    adapter(batch)[0].backward()
    frozen = {p.data_ptr() for p in backbone.model.parameters()}
    assert trained(adapter).keys() == dict(adapter.named_parameters()).keys()
    for name, parameter in trained(adapter).items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert parameter.data_ptr() not in frozen, name
    shapes = sum(value.numel() for value in adapter.state_dict().values())
    assert shapes <= sum(p.numel() for p in trained(adapter).values()) + 2  # objective's state


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_gives_the_same_output(
    variant: str, backbone: Backbone, batch: Batch
) -> None:
    adapter = make(variant, backbone)
    if trained(adapter):
        train(adapter, batch, steps=2)
    state = {name: value.clone() for name, value in adapter.state_dict().items()}
    other = make(variant, backbone, seed=9)
    other.load_state_dict(state)
    assert torch.equal(outputs(adapter, batch), outputs(other, batch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_seed_same_result(variant: str, backbone: Backbone, batch: Batch) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make(variant, backbone)
    assert torch.equal(torch.get_rng_state(), state)  # building draws from no one else's stream
    torch.manual_seed(2)
    two = make(variant, backbone)
    if trained(one):
        assert train(one, batch, steps=2) == train(two, batch, steps=2)
    assert torch.equal(outputs(one, batch), outputs(two, batch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_predictions_are_normalised_and_deterministic(
    variant: str, backbone: Backbone, batch: Batch
) -> None:
    adapter = make(variant, backbone)
    found = outputs(adapter, batch)
    assert found.shape == (16 + 32, 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(48))
    assert torch.equal(found, outputs(adapter, batch))


@pytest.mark.parametrize("variant", ["zero_shot", "lora", "lora both", "projection"])
def test_at_the_start_it_is_zero_shot(variant: str, backbone: Backbone, batch: Batch) -> None:
    expected = outputs(make("zero_shot", backbone), batch)
    torch.testing.assert_close(outputs(make(variant, backbone), batch), expected)


@pytest.mark.parametrize("variant", ["soft_prompt", "lora both"])
def test_another_seed_is_another_start(variant: str, backbone: Backbone) -> None:
    one, two = (trained(make(variant, backbone, seed=seed)) for seed in (0, 1))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_unknown_names_tell_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean `soft_prompt`"):
        make_config("softprompt")
    with pytest.raises(ConfigError, match=r"Did you mean `adapter\.n_ctx`"):
        make_config("soft_prompt", {"adapter.nctx": 4})


def test_a_recipe_gives_way_to_what_is_asked_for() -> None:
    assert make_config("lora").optim.lr == 5e-5
    assert make_config("lora", {"optim.lr": 1e-3}).optim.lr == 1e-3
    assert make_config("zero_shot").epochs == 0


@pytest.mark.parametrize(
    ("name", "field", "value", "sentence"),
    [
        ("soft_prompt", "n_ctx", 0, "`adapter.n_ctx` must be at least 1, got 0."),
        ("soft_prompt", "init", " ", "`adapter.init` must be"),
        ("lora", "dropout", 1.0, r"`adapter.dropout` must be in \[0, 1\), got 1.0."),
        ("lora", "rank", 0, "`adapter.rank` must be at least 1, got 0."),
        ("zero_shot", "template", "a photo", "with one `{}` in each part, got 'a photo'"),
        ("zero_shot", "template", "{} and {}", "with one `{}`"),
        ("zero_shot", "template", "{}|", "with one `{}` in each part, got ''"),
        ("zero_shot", "template", "{}s", "without a letter or digit beside `{}`"),
    ],
)
def test_wrong_values_are_refused(name: str, field: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_config(name, {f"adapter.{field}": value})


# -- zero_shot ----------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["a photo of {}", "{} on a table", "a photo of {}.", "a: {}!"])
def test_a_template_on_ids_is_the_template_on_text(template: str, backbone: Backbone) -> None:
    texts = [caption(1), "dog", "a white boat " * 60, "cat " * 75]
    tokens, _ = backbone.tokenize(texts)
    whole, _ = backbone.tokenize([template.format(text.strip()) for text in texts])
    adapter = build(make_config("zero_shot", {"adapter.template": template}), backbone)
    plain = build(make_config("zero_shot"), backbone)
    torch.testing.assert_close(adapter.embed_text(tokens), plain.embed_text(whole))


def test_an_ensemble_is_the_mean_of_unit_vectors(backbone: Backbone, batch: Batch) -> None:
    templates = ("{}", "a photo of {}")
    each = [
        build(make_config("zero_shot", {"adapter.template": t}), backbone).embed_text(batch.tokens)
        for t in templates
    ]
    both = build(make_config("zero_shot", {"adapter.template": "|".join(templates)}), backbone)
    torch.testing.assert_close(both.embed_text(batch.tokens), (each[0] + each[1]) / 2)


# -- soft_prompt --------------------------------------------------------------------------------


def test_prompt_from_words(backbone: Backbone) -> None:
    table = backbone.model.text_model.embeddings.token_embedding.weight
    tokens, _ = backbone.tokenize(["a photo of"])
    words = table[tokens.ids[1:-1]]  # (3, d)
    short = make("soft_prompt", backbone, **{"adapter.init": "a photo of", "adapter.n_ctx": 2})
    long = make("soft_prompt", backbone, **{"adapter.init": "a photo of", "adapter.n_ctx": 5})
    assert torch.equal(short.vectors, words[:2])  # type: ignore[arg-type]
    vectors = long.vectors
    assert isinstance(vectors, Tensor)
    assert torch.equal(vectors[:3], words)
    assert 0 < vectors[3:].abs().max() < 0.2


def test_a_prompt_of_real_words_says_them(backbone: Backbone) -> None:
    values = {"adapter.init": "a photo of", "adapter.n_ctx": 3}
    prompted = make("soft_prompt", backbone, **values)
    captions, _ = backbone.tokenize(["red dog", "boat"])
    written, _ = backbone.tokenize(["a photo of red dog", "a photo of boat"])
    torch.testing.assert_close(
        prompted.embed_text(captions), make("zero_shot", backbone).embed_text(written)
    )


def test_a_prompt_longer_than_the_context_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"`adapter\.n_ctx` must be at most 74 on this backbone"):
        make("soft_prompt", backbone, **{"adapter.n_ctx": 75})


def test_parameters_of_a_prompt_as_published(backbone: Backbone) -> None:
    adapter = make("soft_prompt", backbone, **{"adapter.n_ctx": 16})
    assert sum(p.numel() for p in trained(adapter).values()) == 16 * 32  # CoOp: 16 * 512 = 8,192


# -- lora ---------------------------------------------------------------------------------------


def lora(backbone: Backbone, batch: Batch, **values: Any) -> Adapter[Any]:
    """A LoRA that has moved away from zero-shot."""
    adapter = build(make_config("lora", values), backbone)
    train(adapter, batch, steps=3, lr=0.05)
    return adapter


def hugging_face(model: Any, batch: Batch, backbone: Backbone) -> Tensor:
    """The embeddings as plain transformers code computes them."""
    assert batch.pixels is not None
    ids = batch.tokens.pad(backbone.tokenizer.eos_token_id)
    mask = torch.arange(ids.shape[1]) < batch.tokens.lengths[:, None]
    with torch.no_grad():
        pixels = backbone.preprocess.normalise(batch.pixels)
        images = model.get_image_features(pixel_values=pixels).pooler_output
        texts = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    return F.normalize(torch.cat([images, texts]), dim=-1)


@pytest.mark.parametrize("tower", ["text", "vision", "both"])
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_what_we_export(
    tower: str, rslora: bool, clip: Path, backbone: Backbone, batch: Batch, tmp_path: Path
) -> None:
    values = {"adapter.tower": tower, "adapter.rslora": rslora, "adapter.targets": "qkvo"}
    adapter = lora(backbone, batch, **values)
    files = adapter.export(tmp_path)
    assert all(path.is_file() for path in files)
    loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip), str(tmp_path)).eval()
    ours = outputs(adapter, batch)
    torch.testing.assert_close(hugging_face(loaded, batch, backbone), ours, atol=1e-5, rtol=0)
    zero_shot = outputs(make("zero_shot", backbone), batch)
    assert (ours - zero_shot).abs().max() > 1e-2  # there was something to lose


def test_merged_it_is_a_plain_clip(backbone: Backbone, batch: Batch, tmp_path: Path) -> None:
    adapter: Any = lora(backbone, batch, **{"adapter.tower": "both", "adapter.targets": "all"})
    ours = outputs(adapter, batch)
    adapter.merge(tmp_path)
    assert torch.equal(outputs(adapter, batch), ours)  # the adapter itself goes on as it was
    plain = CLIPModel.from_pretrained(tmp_path).eval()
    assert not any("lora" in name for name in plain.state_dict())
    torch.testing.assert_close(hugging_face(plain, batch, backbone), ours, atol=1e-5, rtol=0)
    # Our own loader takes it too, preprocessing and tokenizer included.
    again = load_backbone(str(tmp_path))
    assert again.preprocess == backbone.preprocess
    assert again.fingerprint != backbone.fingerprint
    tokens, _ = again.tokenize([caption(3)])
    assert tokens.ids.tolist() == backbone.tokenize([caption(3)])[0].ids.tolist()
    assert batch.pixels is not None
    embeds = again.embed_images(batch.pixels)
    moved = Batch(embeds, None, batch.tokens, batch.image_groups, batch.caption_groups, 0.0)
    zero_shot = outputs(make("zero_shot", again), moved)
    torch.testing.assert_close(zero_shot, ours, atol=1e-5, rtol=0)


def test_dropout_acts_in_training_only(backbone: Backbone, batch: Batch) -> None:
    adapter = lora(backbone, batch, **{"adapter.dropout": 0.5})
    adapter.train()
    assert not torch.equal(adapter.embed_text(batch.tokens), adapter.embed_text(batch.tokens))
    adapter.eval()
    assert torch.equal(adapter.embed_text(batch.tokens), adapter.embed_text(batch.tokens))


@pytest.mark.parametrize(
    ("tower", "inputs"), [("text", "features"), ("vision", "pixels"), ("both", "pixels")]
)
def test_only_the_vision_tower_needs_pixels(
    tower: str, inputs: str, backbone: Backbone, batch: Batch
) -> None:
    adapter = build(make_config("lora", {"adapter.tower": tower}), backbone)
    assert adapter.inputs == inputs
    if inputs == "pixels":
        with pytest.raises(DataError, match="needs pixels"):
            adapter.embed_images(batch.image_embeds, None)


@pytest.mark.parametrize(
    ("tower", "published"), [("text", 196_608), ("vision", 294_912), ("both", 491_520)]
)
def test_parameters_as_published(tower: str, published: int) -> None:
    """Rank 8 on q and v of ViT-B/32, whose shape is `CLIPConfig`'s default, on no memory."""
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig())
    shape: Any = SimpleNamespace(
        model=model, name="b32", revision=None, kind="clip", scale=100.0, bias=0.0
    )
    shape.isolated = lambda: shape
    adapter = build(make_config("lora", {"adapter.tower": tower}), shape)
    assert sum(p.numel() for p in trained(adapter).values()) == published


def test_layers_counts_from_the_output(backbone: Backbone) -> None:
    adapter = build(make_config("lora", {"adapter.layers": 1}), backbone)
    assert {name.split(".")[1] for name in trained(adapter)} == {
        f"text_model-encoder-layers-1-self_attn-{matrix}_proj" for matrix in "qv"
    }
    with pytest.raises(ConfigError, match=r"`adapter\.layers` must be at most 2, got 3"):
        build(make_config("lora", {"adapter.layers": 3}), backbone)
