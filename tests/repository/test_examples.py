"""The examples in docstrings are run, and what one would call has one.

They speak of `backbone`, a tiny CLIP; `pairs` and `train`, its features of captioned and of
labelled images; `features`, `draw` and `checkpoint`, the places of a store, of a draw and of an
adapter.
"""

from __future__ import annotations

import dataclasses
import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.repository.test_architecture import ROOT, module_of
from tests.shelf import draw
from tests.tiny import tiny_features, tiny_shards
from trainables.adapters.registry import ADAPTERS, build, make_config
from trainables.features.features import open_features
from trainables.features.few_shot import read_draw, write_draw
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import save_checkpoint

MODULES = sorted(
    module_of(path.relative_to(ROOT).as_posix())
    for package in ("trainables", "search_spaces", "pipelines")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text()
)


# What one would call from a program, by module.
CALLED = {
    "trainables.adapters.registry": ("make_config", "adapters_for", "build"),
    "trainables.features.features": ("backbone_of", "open_features"),
    "trainables.features.few_shot": ("Draw", "read_draw"),
    "trainables.models.text_plan": ("Prompt", "plan"),
    "trainables.training.checkpoint": ("load_adapter", "read_config"),
    "trainables.training.loop": ("Run",),
    "trainables.training.measure": ("measure",),
    "trainables.training.predict": ("predict", "score"),
    "trainables.metrics.calibration": ("Calibration",),
    "trainables.metrics.captioning": ("score_captions",),
    "trainables.metrics.classification": ("classification_metrics",),
    "trainables.metrics.clip_score": ("clip_score", "ref_clip_score"),
    "trainables.metrics.conformal": ("split_misfit", "adaptive_misfit", "threshold"),
    "trainables.metrics.retrieval": ("ranks", "retrieval_metrics"),
    "trainables.statistics.bootstrap": ("Bootstrap", "differing", "holm"),
    "trainables.statistics.interpretation": ("nearest_words", "ablation"),
    "search_spaces.notation": ("read", "words", "text_of", "contains"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, clip: Path, backbone: Backbone) -> Any:
    folder = tmp_path_factory.mktemp("examples")
    shards = tiny_shards(folder / "shards", {"train": 24, "val": 12})
    given = {"images": 24, "val": 12, "pixels": True, "clip": clip, "shards": shards}
    features = tiny_features(folder / "features", **given)
    write_draw(folder / "draw.json", draw((0, 1, 2), images=24, val=12))
    pairs = open_features(features, "train", backbone)
    train = read_draw(folder / "draw.json").of(pairs, "train")
    adapter = build(make_config("coop", {"adapter.n_ctx": 4}), backbone, train)
    save_checkpoint(folder / "best", adapter, {})
    return {
        **{"backbone": backbone, "pairs": pairs, "train": train},
        **{"features": features, "draw": folder / "draw.json", "checkpoint": folder / "best"},
    }


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_true(name: str, world: dict[str, Any]) -> None:
    found = doctest.testmod(importlib.import_module(name), extraglobs=world)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_and_its_configuration_have_an_example(name: str) -> None:
    kind = ADAPTERS[name]
    assert ">>> " in (kind.__doc__ or "")
    assert not dataclasses.fields(kind.Config) or ">>> " in (kind.Config.__doc__ or "")


@pytest.mark.parametrize("module", CALLED)
def test_what_one_would_call_has_an_example(module: str) -> None:
    names = importlib.import_module(module)
    without = [
        name for name in CALLED[module] if ">>> " not in (getattr(names, name).__doc__ or "")
    ]
    assert without == []
