"""Heads on features of a real CLIP: 16 shots of WHU-RS19 by OpenAI's ViT-B/32, one draw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.cli import stage_main
from pipelines.drawing.labelled import read_labelled
from pipelines.drawing.make import Task, make_draw
from pipelines.drawing.words import Words
from trainables.adapters.registry import build, make_config
from trainables.features import backbone_of, open_features
from trainables.predict import score
from trainables.shards import ShardSet

GIVEN = Path(__file__).parents[2] / "shared/data/real-clip/whurs19/ViT-B-32"
# At least, of the images that the draw did not take: what plain code reaches, less 2 points.
LEAST = {"tip_adapter": 0.91, "gda": 0.96, "kernel_ridge": 0.96, "lp_plus": 0.96, "ss_text": 0.92}


@pytest.mark.skipif(not GIVEN.is_dir(), reason="the features of a real CLIP are not here")
def test_heads_reach_on_a_real_clip_what_plain_code_does(tmp_path: Path) -> None:
    flags = ["--embeddings", str(GIVEN), "--split", "draw", "--out", str(tmp_path)]
    stage_main("encode", flags)
    [store] = [path.parent for path in tmp_path.glob("*/manifest.json")]
    shards, backbone = ShardSet.open(store), backbone_of(store)
    words = Words("", "a satellite photo of a {}", {}).fitted(shards.templates)
    data = read_labelled(shards)
    draw = make_draw(data, Task("whurs19", 16, 1, "all", words))
    pool = open_features(store, "train", backbone)
    train, val = draw.of(pool, "train"), draw.of(pool, "val")
    labels = {one.id: label for label, own in data.usable("train").items() for one in own}
    rest = labels.keys() - {*train.ids, *val.ids}
    test = pool.take({id_: labels[id_] for id_ in rest}, draw.classes)
    assert test.labels is not None
    assert len(test.labels) == 1005 - 19 * 20

    def accuracy(name: str) -> float:
        head = build(make_config(name, {"task": "classification"}), backbone, train)
        head.end_epoch(1, val)
        right = score(head, test, draw.classes).argmax(1) == test.labels
        return float(right.to(torch.float64).mean())

    assert 0.73 < accuracy("zero_shot") < 0.79
    found = {name: accuracy(name) for name in LEAST}
    assert all(found[name] >= least for name, least in LEAST.items()), found
