"""The contract, for every adapter of the registry."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.contract import (
    ALL,
    CLASSIFIERS,
    LEARNING,
    VARIANTS,
    batch_of,
    make,
    outputs,
    train,
    trained,
)
from trainables.adapters.registry import make_config
from trainables.data.batches import Batch
from trainables.errors import ConfigError
from trainables.models.backbone import Backbone
from trainables.models.text_tower import embed_text
from trainables.training.checkpoint import trained_tensors


@pytest.mark.parametrize("variant", LEARNING)
def test_the_loss_falls(variant: str, backbone: Backbone) -> None:
    adapter = make(variant, backbone, **{"temperature.scale": 10.0})
    losses = train(adapter, batch_of(adapter, backbone))
    assert losses[-1] < losses[0] - 0.005


@pytest.mark.parametrize("variant", ALL)
def test_the_backbone_is_never_changed(variant: str, backbone: Backbone) -> None:
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    structure = str(backbone.model)
    adapter = make(variant, backbone)
    batch = batch_of(adapter, backbone)
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


@pytest.mark.parametrize("variant", LEARNING)
def test_all_that_is_trained_gets_a_gradient_and_is_the_adapters_own(
    variant: str, backbone: Backbone
) -> None:
    adapter = make(variant, backbone)
    batch = batch_of(adapter, backbone)
    # LoRA's A has none before B has left 0.
    train(adapter, batch, steps=1)
    adapter(batch)[0].backward()
    if ALL[variant][0] == "two_stage":  # its rows train when its norms have
        adapter.end_epoch(adapter.train_config.epochs, None)
        adapter(batch)[0].backward()
    frozen = {p.data_ptr() for p in backbone.model.parameters()}
    assert trained(adapter).keys() == dict(adapter.named_parameters()).keys()
    for name, parameter in trained(adapter).items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert parameter.data_ptr() not in frozen, name
    assert adapter.state_dict().keys() == trained_tensors(adapter).keys()  # no backbone


@pytest.mark.parametrize("variant", ALL)
def test_saved_and_loaded_gives_the_same_output(variant: str, backbone: Backbone) -> None:
    adapter = make(variant, backbone)
    batch = batch_of(adapter, backbone)
    if trained(adapter):
        train(adapter, batch, steps=2)
    state = {name: value.clone() for name, value in adapter.state_dict().items()}
    other = make(variant, backbone, seed=9)
    other.load_state_dict(state)
    assert torch.equal(outputs(adapter, batch), outputs(other, batch))


@pytest.mark.parametrize("variant", ALL)
def test_same_seed_same_result(variant: str, backbone: Backbone) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make(variant, backbone)
    batch = batch_of(one, backbone)
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


@pytest.mark.parametrize("variant", ALL)
def test_siglip_is_a_backbone_like_clip(variant: str, siglip: Backbone) -> None:
    if ALL[variant][0] == "mip":
        with pytest.raises(ConfigError, match="used with a CLIP"):
            make(variant, siglip)
        return
    if variant == "prolip projection":
        return  # refused
    adapter = make(variant, siglip, **{"temperature.scale": 10.0})
    batch = batch_of(adapter, siglip)
    if variant in ("zero_shot", "lora", "lora both", "projection"):
        expected = torch.cat([batch.image_embeds, embed_text(siglip, batch.tokens)])
        torch.testing.assert_close(outputs(adapter, batch), F.normalize(expected, dim=1))
    if trained(adapter):
        losses = train(adapter.train(), batch)
        assert losses[-1] < losses[0] - 0.005


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


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_scores_of_classes_stay_in_fp32(variant: str, backbone: Backbone) -> None:
    # Steps in bf16 round what the towers make, not the similarities that tau multiplies.
    adapter = make(variant, backbone).eval()
    batch = batch_of(adapter, backbone)
    with torch.no_grad():
        classifier = adapter.classifier(batch.tokens, batch.text_embeds)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = classifier(batch.image_embeds, batch.hidden)
    assert scores.dtype == torch.float32
