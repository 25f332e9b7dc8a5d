"""Norms and singular values of the towers: what each stage trains, and who gets a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.contract import CLASSES, batch_of, examples, make, train
from tests.trainables.adapters.test_classifiers import OTHERS
from trainables.adapters.registry import build, make_config
from trainables.errors import ConfigError
from trainables.features.classes import Classes
from trainables.models.backbone import Backbone
from trainables.training.loop import Run
from trainables.training.predict import score


def run(backbone: Backbone, folder: Path, **values: Any) -> Run:
    values = {"epochs": 4, "batch_size": 8, "precision": "fp32", "optim.lr": 1e-2, **values}
    config = make_config("two_stage", {"adapter.share": 0.5, **values})
    data = examples(backbone)
    return Run(config, backbone, data, data, folder, "val/accuracy")


def learned(one: Run) -> tuple[torch.Tensor, torch.Tensor]:
    norms = torch.cat([p.detach().flatten() for p in one.adapter.norms.parameters()])
    return norms, one.adapter.rows.detach().clone()


def test_norms_train_then_rows_that_start_at_the_adapted_texts(
    backbone: Backbone, tmp_path: Path
) -> None:
    one = run(backbone, tmp_path / "one")
    start = learned(one)
    torch.testing.assert_close(start[1], CLASSES.text_embeds(backbone))
    one.advance()
    between = learned(one)
    assert torch.equal(between[1], start[1])
    assert (between[0] - start[0]).abs().max() > 1e-3
    one.advance()  # half of four: the first stage ends
    norms, rows = learned(one)
    adapter = one.adapter
    assert not torch.equal(norms, between[0])
    for seen in (CLASSES, OTHERS):  # of no class is a row another than its text yet
        found = score(adapter, examples(backbone), seen)
        adapter.second = False
        images = adapter.embed_images(
            torch.empty(0), examples(backbone).hidden(torch.arange(16), 0, 0)
        )
        texts = adapter.embed_text(seen.tokens(backbone))
        expected = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
        adapter.second = True
    others = score(adapter, examples(backbone), OTHERS)
    while not one.finished:
        one.advance()
    assert torch.equal(learned(one)[0], norms)
    assert (learned(one)[1] - rows).abs().max() > 1e-3
    # Classes that were not trained on are as the norms left them; beside others they are the same.
    assert torch.equal(score(adapter, examples(backbone), OTHERS), others)
    mixed = score(adapter, examples(backbone), Classes((*OTHERS.names, *CLASSES.names)))
    own = score(adapter, examples(backbone), CLASSES)
    torch.testing.assert_close(mixed, torch.cat([others, own], 1), rtol=0, atol=1e-5)


def test_a_stage_survives_a_kill(backbone: Backbone, tmp_path: Path) -> None:
    whole = run(backbone, tmp_path / "whole")
    while not whole.finished:
        whole.advance()
    for _ in range(4):  # each epoch by another process
        parts = run(backbone, tmp_path / "parts")
        parts.advance()
    for one, other in zip(learned(whole), learned(parts), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["two_stage", "singular_values"])
def test_turned_down_to_nothing_it_is_zero_shot(name: str, backbone: Backbone) -> None:
    adapter = make(name, backbone, precision="fp32")
    start = {key: tensor.clone() for key, tensor in adapter.state_dict().items()}
    data = examples(backbone)
    expected = score(make("zero_shot classes", backbone, precision="fp32"), data, CLASSES)
    torch.testing.assert_close(score(adapter, data, CLASSES), expected, rtol=1e-5, atol=1e-6)
    train(adapter, batch_of(adapter, backbone), steps=3, lr=0.05)
    adapter.end_epoch(adapter.train_config.epochs, None)
    train(adapter, batch_of(adapter, backbone), steps=3, lr=0.05)
    learned = {key: tensor.clone() for key, tensor in adapter.state_dict().items()}
    assert (score(adapter, data, CLASSES) - expected).abs().max() > 1e-2
    adapter.load_state_dict(adapter.turned(start, learned, 0.0))
    torch.testing.assert_close(score(adapter, data, CLASSES), expected, rtol=1e-5, atol=1e-6)


def test_singular_values_are_decomposed_once_and_not_before_they_are_needed(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone.beside.pop("singular vectors", None)
    made: list[int] = []
    plain = torch.linalg.svd

    def svd(*args: Any, **values: Any) -> Any:
        made.append(1)
        return plain(*args, **values)

    monkeypatch.setattr(torch.linalg, "svd", svd)
    build(make_config("singular_values"), backbone)
    assert not made  # as for checks before any work
    for _ in range(2):
        make("singular_values", backbone)
    assert len(made) == 2 * 2 * 6  # two towers of two blocks


def test_what_works_inside_towers_needs_them(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"`adapter.share` must be in \(0, 1\], got 0.0."):
        make_config("two_stage", {"adapter.share": 0.0})
    for name in ("two_stage", "singular_values"):
        adapter = make(name, backbone)
        assert adapter.needs(adapter.train_config) == "both towers"
