"""What bf16 may change, stage by stage, on the CLIP and the language model that ship with cliptune.

Each row of the table is measured here: fp32 throughout against bf16 throughout, so what is made of
images in a bf16 store meets what is made of words in a bf16 trial. The bounds are about twice what
was measured on a CPU with avx512_bf16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.demo.__main__ import BACKBONE
from pipelines.demo.lexicon import SHIFTED
from pipelines.demo.render import render
from pipelines.demo.scenes import COLOURS, Scene, invent, invent_one
from pipelines.demo.sentences import captions
from trainables.adapters.base import Adapter, product
from trainables.adapters.registry import build, make_config
from trainables.data.batches import Batch
from trainables.features.classes import Classes
from trainables.features.lazy_parts import LazyParts
from trainables.features.split import SplitFeatures
from trainables.hardware import Resolved, autocast, has_bf16
from trainables.metrics.retrieval import mutual_ranks, retrieval_metrics
from trainables.models.backbone import Backbone
from trainables.models.image_tower import frozen_embeds
from trainables.models.load import load_backbone
from trainables.training.predict import predict, score

# What each stage makes, and the greatest difference that bf16 may make to it: of embeddings
# 1 - cosine, of losses and gradients relative to their length, of all else as it is. Ranks are
# shares of the pool that is ranked: 0.04 are 4 of 100 images, and 0.011 is one
# image.
TABLE: dict[str, dict[str, float]] = {
    "images": {"embeddings": 4e-5},
    "frozen text": {"embeddings": 4e-5},
    "training of a prompt": {"loss": 0.006, "gradients": 0.013},
    "training of LoRA": {"loss": 0.005, "gradients": 0.011},
    "retrieval": {"similarities": 0.01, "ranks": 0.04, "recall and MRR": 0.011},
    "classification": {"similarities": 0.01, "accuracy": 0.025},
    "captions": {"loss": 0.0015, "log-probabilities": 0.15},
}
SCENES, THINGS, BATCH = 100, 8, 32  # images; of each colour; of a step
Made = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """All that the stages compute on, in one precision."""

    precision: Resolved
    scenes: SplitFeatures
    things: SplitFeatures
    batch: Batch

    def adapter(self, name: str, **values: Any) -> Adapter[Any]:
        assert self.scenes.lazy is not None
        config = make_config(name, {"precision": self.precision, **values})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build(config, self.scenes.lazy.backbone)


@dataclass(frozen=True)
class Drawn:
    """Scenes with captions, and things of some colours, as pixels."""

    backbone: Backbone
    scenes: Tensor
    things: Tensor
    texts: list[str]


def pixels_of(backbone: Backbone, scenes: list[Scene]) -> Tensor:
    arrays = [np.array(render(scene)) for scene in scenes]  # (H, W, 3)
    return torch.stack(
        [backbone.preprocess.apply(torch.from_numpy(one).permute(2, 0, 1)) for one in arrays]
    )


def features(backbone: Backbone, pixels: Tensor, texts: list[str]) -> SplitFeatures:
    images = len(pixels)
    return SplitFeatures(
        ids=[str(n) for n in range(images)],
        image_embeds=frozen_embeds(backbone, pixels),
        pixels=None,
        tokens=backbone.tokenize(texts)[0],
        caption_rows=torch.arange(images).repeat_interleave(len(texts) // images),
        groups=torch.arange(images),
        lazy=LazyParts(backbone, "val", kept={"texts": texts}),
    )


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    backbone = load_backbone(str(BACKBONE))
    scenes = [invent("shifted", "val", n) for n in range(SCENES)]
    things = [invent_one("shifted", "val", colour, n) for colour in COLOURS for n in range(THINGS)]
    return Drawn(
        backbone,
        pixels_of(backbone, scenes),
        pixels_of(backbone, things),
        [text for scene in scenes for text in captions(scene)],
    )


def stage_of(drawn: Drawn, precision: Resolved) -> Stage:
    backbone = replace(drawn.backbone, precision=precision, beside={})
    scenes = features(backbone, drawn.scenes, drawn.texts)
    things = features(backbone, drawn.things, ["a thing"] * len(drawn.things))
    classes = Classes(tuple(SHIFTED.colours[colour][-1] for colour in COLOURS))
    labels = torch.arange(len(COLOURS)).repeat_interleave(THINGS)
    groups = torch.arange(BATCH)
    tokens = backbone.tokenize(first_texts(scenes))[0]
    batch = Batch(
        scenes.image_embeds[:BATCH], None, tokens, None, groups, groups, torch.tensor(0.0)
    )
    return Stage(precision, scenes, replace(things, labels=labels, classes=classes), batch)


def first_texts(data: SplitFeatures) -> list[str]:
    """A caption of each image of the batch."""
    return [texts[0] for texts in data.texts_of_images()[:BATCH]]


def training(stage: Stage, name: str, **values: Any) -> Made:
    """A first step."""
    adapter = stage.adapter(name, **values)
    trained = [p for p in adapter.parameters() if p.requires_grad]
    with autocast(stage.precision, "cpu"):
        loss, _ = adapter(stage.batch)
    with torch.autocast("cpu", enabled=False):  # as in the loop
        gradients = torch.autograd.grad(loss, trained)
    return {"loss": loss.detach(), "gradients": torch.cat([g.flatten() for g in gradients])}


def prompt(stage: Stage) -> Made:
    return training(stage, "soft_prompt", **{"adapter.n_ctx": 8, "adapter.depth": 2})


def lora(stage: Stage) -> Made:
    return training(stage, "lora", **{"adapter.targets": "all", "adapter.dropout": 0.0})


def retrieval(stage: Stage) -> Made:
    """With a prompt of words before all captions of val."""
    data = stage.scenes
    found = predict(stage.adapter("soft_prompt", **{"adapter.init": "a photo of"}), data)
    groups = data.groups, data.groups[data.caption_rows]
    both = mutual_ranks(found.image_embeds, found.text_embeds, *groups)
    metrics = retrieval_metrics(found, *groups)
    return {
        "similarities": product(found.image_embeds, found.text_embeds.T),
        "ranks": torch.cat(
            [one.expected() / len(pool) for one, pool in zip(both, groups[::-1], strict=True)]
        ),
        "recall and MRR": torch.tensor([v for k, v in metrics.items() if not k.endswith("medr")]),
    }


def classification(stage: Stage) -> Made:
    data = stage.things
    assert data.classes is not None
    assert data.labels is not None
    adapter = stage.adapter("coop", task="classification", **{"adapter.init": "a photo of a"})
    scores = score(adapter, data, data.classes)
    return {
        "similarities": scores,
        "accuracy": (scores.argmax(1) == data.labels).float().mean(),
    }


def speech(stage: Stage) -> Made:
    """A frozen language model, held in bf16 itself, behind a new prefix."""
    settings = {"task": "captioning", "adapter.lm_mode": "frozen"}
    adapter: Any = stage.adapter("prefix_captioner", **settings)
    batch = replace(stage.batch, tokens=adapter.lm.tokenize(first_texts(stage.scenes)))
    with torch.no_grad(), autocast(stage.precision, "cpu"):
        found = adapter.log_probabilities(batch)
    assert found.dtype == torch.float32
    return {"loss": -found.mean(), "log-probabilities": found}


STAGES: dict[str, Callable[[Stage], Made]] = {
    "images": lambda stage: {"embeddings": stage.scenes.image_embeds},
    "frozen text": lambda stage: {"embeddings": stage.scenes.text_embeds()},
    "training of a prompt": prompt,
    "training of LoRA": lora,
    "retrieval": retrieval,
    "classification": classification,
    "captions": speech,
}


def difference(quantity: str, one: Tensor, other: Tensor) -> float:
    if quantity == "embeddings":
        one, other = (F.normalize(x.double(), dim=1) for x in (one, other))
        return float((one - other).square().sum(1).max() / 2)  # 1 - cosine
    if quantity in ("loss", "gradients"):
        return float((one - other).norm() / one.norm())
    return float((one - other).abs().max())


@pytest.fixture(scope="module")
def plain(drawn: Drawn) -> Callable[[str], Made]:
    """What a stage makes in fp32, once."""
    stage = stage_of(drawn, "fp32")
    return functools.cache(lambda name: STAGES[name](stage))


@pytest.fixture(scope="module")
def bf16(drawn: Drawn) -> Stage:
    if not has_bf16("cpu"):
        pytest.skip("this CPU has no bf16 of its own: what it emulates rounds elsewhere")
    return stage_of(drawn, "bf16")


@pytest.mark.parametrize("name", TABLE)
def test_bf16_changes_no_more_than_the_table_says(
    name: str, plain: Callable[[str], Made], bf16: Stage
) -> None:
    expected, made = plain(name), STAGES[name](bf16)
    found = {what: difference(what, expected[what], made[what]) for what in made}
    assert found.keys() == TABLE[name].keys()
    for what, bound in TABLE[name].items():
        assert found[what] <= bound, what
    assert max(found.values()) > 0  # it was computed in bf16


@pytest.fixture(scope="module")
def again(drawn: Drawn) -> Stage:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return stage_of(drawn, "fp32")


@pytest.mark.parametrize("name", TABLE)
def test_fp32_is_fp32_whoever_asks(name: str, plain: Callable[[str], Made], again: Stage) -> None:
    expected = plain(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = STAGES[name](again)
    for what, value in made.items():
        assert torch.equal(value, expected[what]), what
