"""The few-shot adapters from their first vectors to a resumed run: what is kept, and chosen how."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.contract import (
    CLASSES,
    CLASSIFIERS,
    UNTRAINED,
    batch_of,
    examples,
    make,
    train,
    trained,
)
from tests.tiny import tiny_clip
from tests.trainables.adapters.test_few_shot import unit, words
from trainables.adapters.registry import build, make_config
from trainables.errors import ConfigError
from trainables.features.classes import Classes
from trainables.features.split import SplitFeatures
from trainables.metrics.classification import classification_metrics, hits
from trainables.models.backbone import Backbone
from trainables.models.load import load_backbone
from trainables.training.checkpoint import (
    adapter_digest,
    load_adapter,
    save_checkpoint,
    trained_tensors,
)
from trainables.training.measure import examine, measure
from trainables.training.predict import score

OTHERS = Classes(("yellow bird", "car", "red house near the sea"))


# -- where they start -----------------------------------------------------------------------------


def test_mip_starts_from_the_projection(backbone: Backbone) -> None:
    weight = backbone.model.text_projection.weight  # (e, d)
    squares, vectors = torch.linalg.eigh(weight.T @ weight)  # of which those above 0 count
    terms = []
    for square, vector in list(zip(squares, vectors.T, strict=True))[:-17:-1]:
        sign = vector[vector.abs().argmax()].sign()
        terms.append(square.sqrt() * sign * vector)
    dealt = [torch.stack(terms[m::4]).sum(0) for m in range(4)]
    expected = torch.stack([y / y.abs().sum() for y in dealt])
    torch.testing.assert_close(
        make("mip", backbone).vectors.detach(), expected, rtol=1e-4, atol=1e-6
    )
    y = weight.sum(0)
    length = backbone.model.text_model.embeddings.token_embedding.weight.norm(dim=1).mean()
    expected = (unit(y) * length).expand(4, -1)
    torch.testing.assert_close(make("mip plain", backbone).vectors.detach(), expected)
    with pytest.raises(ConfigError, match=r'`adapter.source` must be "text" where .* 32, got'):
        make("mip", backbone, **{"adapter.source": "image"})


def test_words_are_what_a_context_starts_from(backbone: Backbone) -> None:
    _, *said, _ = (row.detach() for row in words(backbone, "a photo of a"))
    for variant in ("cocoop", "kgcoop"):
        assert torch.equal(make(variant, backbone).vectors, torch.stack(said))
    assert torch.equal(make("maple", backbone).vectors[0], torch.stack(said[:2]))
    assert torch.equal(make("promptsrc", backbone).text[0], torch.stack(said))
    assert torch.equal(make("maple shallow", backbone).vectors[0, :4], torch.stack(said))
    every = make("coop specific", backbone, **{"adapter.init": "a photo"}).vectors
    assert torch.equal(every, torch.stack(said[:2]).expand(5, -1, -1))


def test_a_depth_is_cut_to_the_lower_tower(tmp_path: Path) -> None:
    tower = tiny_clip(tmp_path, layers=3, vision_width=48)  # and a default of 9
    high = load_backbone(str(tower))
    assert make("maple", high).vectors.shape == (3, 2, 32)
    assert len(make("maple", high).maps) == 3
    source = make("promptsrc", high, **{"adapter.depth": 2})
    assert (source.text.shape, source.image.shape) == ((2, 4, 32), (2, 4, 48))


@pytest.mark.parametrize(
    ("variant", "field", "value", "sentence"),
    [
        ("maple", "depth", 0, "`adapter.depth` must be at least 1, got 0."),
        ("promptsrc", "depth", 0, "`adapter.depth` must be at least 1, got 0."),
        ("promptsrc", "text_weight", -1.0, "`adapter.text_weight` must be at least 0, got -1.0."),
        ("promptsrc", "mean", 1.5, r"`adapter.mean` must be in \[0, 1\], got 1.5."),
        ("promptsrc", "std", 0.0, "`adapter.std` must be above 0, got 0.0."),
        ("tip_adapter", "beta", 0.0, "`adapter.beta` must be above 0, got 0.0."),
        ("clip_adapter", "ratio", 0.0, r"`adapter.ratio` must be in \(0, 1\], got 0.0."),
        ("mip", "norm", 0.0, "`adapter.norm` must be above 0, got 0.0."),
    ],
)
def test_wrong_values_are_refused(variant: str, field: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_config(variant, {f"adapter.{field}": value})


# -- what is kept ---------------------------------------------------------------------------------


def moved(variant: str, backbone: Backbone) -> Any:
    """An adapter after two steps and the end of an epoch."""
    adapter = make(variant, backbone)
    if trained(adapter):
        train(adapter, batch_of(adapter, backbone), steps=2)
    adapter.end_epoch(1, examples(backbone))
    return adapter


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_a_loaded_checkpoint_scores_the_same_bytes(
    variant: str, tmp_path: Path, backbone: Backbone
) -> None:
    adapter, data = moved(variant, backbone), examples(backbone)
    save_checkpoint(tmp_path / "best", adapter, {})
    loaded = load_adapter(tmp_path / "best", backbone)
    assert loaded.classes == CLASSES
    assert torch.equal(score(loaded, data, CLASSES), score(adapter, data, CLASSES))
    assert adapter_digest(loaded) == adapter_digest(adapter)


@pytest.mark.parametrize("variant", CLASSIFIERS)
def test_open_classes_are_any_classes(variant: str, backbone: Backbone) -> None:
    adapter, data = moved(variant, backbone), examples(backbone)
    closed = ("coop specific", "tip_adapter", "linear_probe", "kernel_ridge", "gda", "lp_", "ss_")
    assert adapter.open_classes != variant.startswith(closed)
    if not adapter.open_classes:
        return
    found = score(adapter, data, OTHERS)
    assert found.shape == (16, 3)
    backwards = score(adapter, data, Classes(OTHERS.names[::-1]))
    torch.testing.assert_close(found.flip(1), backwards, rtol=0, atol=1e-5)
    assert found.std(1).min() > 1e-5


@pytest.mark.parametrize("variant", [v for v in CLASSIFIERS if v not in UNTRAINED])
def test_scoring_changes_nothing_that_was_learned(variant: str, backbone: Backbone) -> None:
    adapter, data = moved(variant, backbone), examples(backbone)
    before = adapter_digest(adapter)
    found = score(adapter, data, CLASSES)
    some = data.take(dict.fromkeys(data.ids[4:9], 0), CLASSES)  # alone, and with other labels
    torch.testing.assert_close(score(adapter, some, CLASSES), found[4:9], rtol=0, atol=1e-6)
    assert adapter_digest(adapter) == before


# -- Tip-Adapter ----------------------------------------------------------------------------------


def split(backbone: Backbone, rows: range, turn: int = 0) -> SplitFeatures:
    data = examples(backbone)
    ids = {data.ids[n]: (n + turn) % 5 for n in rows}
    return data.take(ids, CLASSES)


@pytest.mark.parametrize(
    "temperature", [{}, {"temperature.policy": "cosine", "temperature.final": 3.0}]
)
def test_tip_adapter_chooses_what_a_double_loop_over_val_finds(
    temperature: dict[str, Any], backbone: Backbone
) -> None:
    adapter = make("tip_adapter", backbone, **temperature, **{"adapter.grid": 1.0})
    val = split(backbone, range(3, 14))
    half = torch.randn(11, 16, generator=torch.Generator().manual_seed(0))
    val.image_embeds.add_(half * val.image_embeds.std())  # not the cached images themselves
    assert val.labels is not None
    adapter.end_epoch(1, val)
    chosen = float(adapter.alpha), float(adapter.beta)
    scores: dict[tuple[float, float], tuple[float, float]] = {}
    for alpha in torch.linspace(0.1, 3.0, 20).tolist():
        for beta in torch.linspace(0.1, 7.0, 200).tolist():
            if round(beta * 1000) % 7 and (alpha, beta) != chosen:  # a seventh of the grid
                continue
            adapter.alpha.fill_(alpha)
            adapter.beta.fill_(beta)
            found = classification_metrics(score(adapter, val, CLASSES), val.labels, adapter.tau)
            scores[alpha, beta] = found["accuracy"], found["log_likelihood"]
    assert len(scores) > 400
    best = max(scores.values())
    assert scores[chosen][0] == best[0]
    assert scores[chosen][1] >= best[1] - 1e-6
    assert len({accuracy for accuracy, _ in scores.values()}) > 1


@pytest.mark.parametrize("tune", [False, True])
def test_val_is_measured_by_what_its_other_images_chose(tune: bool, backbone: Backbone) -> None:
    data = split(backbone, range(8))
    adapter: Any = build(make_config("tip_adapter", {"adapter.tune": tune}), backbone, data)
    val = split(backbone, range(2, 16), turn=1)  # some cached, and few of their class
    assert val.labels is not None
    similarity = adapter.end_epoch(1, val)
    chosen = float(adapter.alpha), float(adapter.beta)
    ranked = sorted(range(14), key=lambda n: int(val.labels[n]))  # type: ignore[index]
    expected = torch.empty(14, 5)
    for part in range(5):
        others = [n for place, n in enumerate(ranked) if place % 5 != part]
        adapter.end_epoch(1, val.take({val.ids[n]: int(val.labels[n]) for n in others}, CLASSES))
        own = [n for n in range(14) if n not in others]
        expected[own] = score(adapter, val, CLASSES)[own]
    torch.testing.assert_close(similarity, expected)
    adapter.end_epoch(1, val)
    assert chosen == (float(adapter.alpha), float(adapter.beta))
    assert not torch.allclose(similarity, score(adapter, val, CLASSES))
    found = examine(adapter, val, similarity)
    assert torch.equal(found.values["accuracy"], hits(similarity, val.labels))


def test_tip_adapter_is_train_and_val_alone(backbone: Backbone) -> None:
    data, val = split(backbone, range(8)), split(backbone, range(8, 16))
    adapter: Any = build(make_config("tip_adapter"), backbone, data)
    assert torch.equal(adapter.keys, F.normalize(F.normalize(data.image_embeds, dim=-1), dim=-1))
    adapter.end_epoch(1, val)
    before = adapter_digest(adapter)
    score(adapter, split(backbone, range(16), turn=2), CLASSES)
    measure(adapter, split(backbone, range(16), turn=2))
    assert adapter_digest(adapter) == before


def test_a_key_is_the_mean_of_ten_views(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    seen = torch.randn(12, 16, 16, generator=random)  # (views, N, e)
    monkeypatch.setattr(SplitFeatures, "embeds", lambda _, rows, view: seen[view - 1][rows])
    data = dataclasses.replace(examples(backbone), views=12)
    adapter = make("tip_adapter", backbone)
    adapter.prepare(data)
    expected = unit(torch.stack([unit(view) for view in seen[:10]]).mean(0))
    torch.testing.assert_close(adapter.keys, expected)


# -- PromptSRC's epochs ---------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [20, 4])
def test_promptsrc_evaluates_the_gaussian_mean_of_its_epochs(
    epochs: int, backbone: Backbone
) -> None:
    adapter: Any = make("promptsrc", backbone, epochs=epochs, precision="fp32")
    data = examples(backbone)
    centre, width = (15, 1) if epochs == 20 else (3, 0.2)
    history = []
    for epoch in range(1, epochs + 1):
        with torch.no_grad():
            adapter.text.add_(torch.randn_like(adapter.text))
            adapter.image.mul_(0.9)
        history.append(adapter.text.detach().double().clone())
        adapter.end_epoch(epoch, data)
        numbers = range(1, epoch + 1)
        # Divided by the largest: the first of these Gaussians are 0 as a number.
        logs = [-((n - centre) ** 2) / (2 * width**2) for n in numbers]
        weights = [math.exp(log - max(logs)) for log in logs]
        expected = sum(w * v for w, v in zip(weights, history, strict=True)) / sum(weights)
        torch.testing.assert_close(adapter.text_mean.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(adapter.text.double(), history[-1])  # training goes on from the raw ones
    hidden = data.hidden(torch.arange(16), 0, 0)
    with torch.no_grad():
        found = score(adapter, data, CLASSES)
        adapter.text.copy_(adapter.text_mean)
        adapter.image.copy_(adapter.image_mean)
        tokens = CLASSES.tokens(backbone, adapter.class_words, 4)
        raw = adapter.train().classifier(tokens)(data.image_embeds, hidden)
    torch.testing.assert_close(raw, found, rtol=0, atol=1e-5)
    assert {"text_mean", "image_mean"} < trained_tensors(adapter).keys()
