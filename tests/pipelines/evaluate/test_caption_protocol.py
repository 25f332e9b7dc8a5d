"""Captioners on the sealed test split: what is measured and shown, and whole searches of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.evaluate import __main__ as evaluate
from pipelines.evaluate.captions import CaptionProtocol
from pipelines.evaluate.gallery import COLUMNS
from pipelines.evaluate.protocol import Measured, metrics, versus
from pipelines.evaluate.sayings import sayings
from pipelines.tune import __main__ as tune
from pipelines.tune.study.search import Search
from tests import ROOT
from tests.tiny import caption, tiny_features, tiny_lm, tiny_shards
from trainables.adapters.prefix_captioner import PrefixCaptioner
from trainables.adapters.registry import adapters_for, build, make_config, task_of
from trainables.data.shards import Seal, ShardSet
from trainables.errors import ConfigError, DataError
from trainables.features.features import embed_split, open_features
from trainables.features.split import SplitFeatures
from trainables.files import read_json, read_jsonl, write_json
from trainables.metrics.captioning import References, score_captions
from trainables.models.backbone import Backbone
from trainables.training.loop import Run
from trainables.training.predict import speak

METRIC = "val/cider_d"
TEST = 8  # images, the last 8 of 40
FIRST = 32
BRIEF = {"adapter.prefix_length": 3, "adapter.layers": 1, "adapter.heads": 4}
BRIEF |= {"adapter.clip_length": 2, "adapter.max_tokens": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """Shards, their features, and a language model."""
    folder = tmp_path_factory.mktemp("captions")
    tiny_shards(folder / "shards", rows_per_shard=24)
    tiny_features(folder / "features", 24, val=8, clip=clip, shards=folder / "shards")
    tiny_lm(folder / "lm")
    return folder


@pytest.fixture(scope="module")
def data(base: Path, backbone: Backbone) -> SplitFeatures:
    shards = ShardSet.open(base / "shards")
    return embed_split(backbone, shards, "test", seal=Seal("a test of the protocol"))


@pytest.fixture(scope="module")
def protocol(data: SplitFeatures, backbone: Backbone) -> CaptionProtocol:
    return CaptionProtocol(data, backbone, resamples=200)


def references() -> list[list[str]]:
    return [[caption(FIRST + row, v) for v in (0, 1)] for row in range(TEST)]


SAID = ["a red dog", *(caption(FIRST + row, 1) for row in range(1, 6)), "", "a a a photo of a sea"]
OTHER = [caption(FIRST + (row + 1) % TEST) for row in range(TEST)]


def test_values_are_those_of_the_metrics(protocol: CaptionProtocol) -> None:
    model = protocol.measure(SAID)
    expected = score_captions(SAID, References(references())).summary()
    assert {name: model.summary[name] for name in expected} == pytest.approx(expected)
    assert expected["cider_d"] > 1
    assert model.said == SAID
    found = metrics(model, protocol)
    assert {f"{name}@{TEST}" for name in expected} <= set(found)
    assert {f"clip_score@{TEST}", f"ref_clip_score@{TEST}"} <= set(found)
    for name, one in found.items():
        assert one["value"] == model.summary[name.split("@")[0]]
        assert one["low"] <= one["value"] <= one["high"], name
        assert one["low"] < one["high"], name


def test_clip_scores_are_those_of_the_backbones_own_towers(
    protocol: CaptionProtocol, data: SplitFeatures, backbone: Backbone
) -> None:
    def embed(text: str) -> Tensor:
        words = backbone.tokenizer(["A photo depicts " + text], return_tensors="pt")
        with torch.no_grad():
            return F.normalize(backbone.model.get_text_features(**words).pooler_output[0], dim=0)

    model = protocol.measure(SAID)
    images = F.normalize(data.image_embeds, dim=1)
    for row, text in enumerate(SAID):
        score = 2.5 * max(0.0, float(images[row] @ embed(text)))
        near = max(0.0, *(float(embed(text) @ embed(other)) for other in references()[row]))
        assert float(model.values["clip_score"][row]) == pytest.approx(score, abs=1e-5)
        both = 2 * score * near / (score + near) if score + near else 0.0
        assert float(model.values["ref_clip_score"][row]) == pytest.approx(both, abs=1e-5)


def test_a_resample_is_the_metric_of_the_images_drawn(protocol: CaptionProtocol) -> None:
    model = protocol.measure(SAID)
    for number in (0, 7, 199):
        drawn = [row for row, times in enumerate(protocol.bootstrap.counts[number])
                 for _ in range(times)]  # fmt: skip
        again = score_captions(
            [SAID[r] for r in drawn], References([references()[r] for r in drawn])
        )
        for metric in ("bleu1", "bleu4"):  # of the corpus drawn, not a mean of sentences
            assert model.replicates[metric][number] == pytest.approx(again.summary()[metric])
        mean = float(model.values["cider_d"][drawn].mean())  # with the weights of the whole split
        assert model.replicates["cider_d"][number] == pytest.approx(mean)


def test_differences_are_paired_and_turn_around(protocol: CaptionProtocol) -> None:
    one, other = protocol.measure(SAID), protocol.measure(OTHER)
    there, back = versus(one, other, protocol), versus(other, one, protocol)
    assert set(there) == set(metrics(one, protocol))
    for name, gap in there.items():
        metric = name.split("@")[0]
        assert gap["difference"] == one.summary[metric] - other.summary[metric]
        assert back[name]["difference"] == -gap["difference"]
        assert back[name]["low"] == pytest.approx(-gap["high"])
        assert back[name]["high"] == pytest.approx(-gap["low"])
        assert back[name]["p"] == gap["p"]
        assert gap["low"] <= gap["difference"] <= gap["high"]
    assert there[f"cider_d@{TEST}"]["low"] > 0
    for gap in versus(one, one, protocol).values():
        assert gap == {"difference": 0, "low": 0, "high": 0, "p": 1}


def test_the_protocol_is_told_in_words(protocol: CaptionProtocol) -> None:
    told = " ".join(protocol.text("cider_d"))
    assert f"each of {TEST} images" in told
    assert f"all {2 * TEST} captions" in told
    assert "made on val, by cider_d" in told
    assert protocol.backbone.name in told
    about = protocol.about(protocol.measure(["a dog"] * TEST))
    assert set(about) == {"diversity"}
    assert about != protocol.about(protocol.measure(SAID))


# -- what is shown ----------------------------------------------------------------------------


def shown(base: Path, data: SplitFeatures, values: list[float], count: int) -> list[dict[str, Any]]:
    models = [
        Measured(
            {"cider_d": torch.tensor(v)}, {}, {}, said=[f"{name} {row}" for row in range(TEST)]
        )
        for name, v in (("plain", [0.0] * TEST), ("chosen", values))
    ]
    rows = ShardSet.open(base / "shards").rows("test", COLUMNS, Seal("a test of the gallery"))
    return sayings(["plain", "chosen"], models, 1, data, rows, count)


def test_the_best_are_shown_then_the_worst_of_equal_ones_the_first(
    base: Path, data: SplitFeatures
) -> None:
    values = [0.0, 3.0, 0.0, 5.0, 3.0, 0.0, 1.0, 2.0]
    found = shown(base, data, values, 5)
    rows = [int(one["id"][-3:]) for one in found]
    assert rows == [3, 1, 4, 0, 2]
    assert [one["kind"] for one in found] == ["best"] * 3 + ["worst"] * 2
    for row, one in zip(rows, found, strict=True):
        assert one["references"] == references()[row]
        assert [said["text"] for said in one["said"]] == [f"plain {row}", f"chosen {row}"]
        assert one["said"][1]["cider_d"] == values[row]
        assert one["thumbs"]


@pytest.mark.parametrize("count", [0, 1, 8, 50])
def test_no_image_is_shown_twice(base: Path, data: SplitFeatures, count: int) -> None:
    found = shown(base, data, [1.0] * TEST, count)
    ids = [one["id"] for one in found]
    assert len(set(ids)) == len(ids) == min(count, TEST)


# -- whole runs -------------------------------------------------------------------------------


def trained(folder: Path, base: Path, backbone: Backbone, mode: str) -> Path:
    """A run of one epoch, as `cliptune train` leaves it."""
    settings = {**BRIEF, "adapter.lm": str(base / "lm"), "adapter.lm_mode": mode, "epochs": 1}
    config = make_config("prefix_captioner", {**settings, "optim.lr": 1e-2})
    train, val = (open_features(base / "features", split, backbone) for split in ("train", "val"))
    Run(config, backbone, train, val, folder, METRIC).advance()
    about = {"features": str(base / "features"), "task": "captioning", "metric": METRIC}
    write_json(folder / "run.json", about)
    return folder


def test_two_captioners_are_measured_beside_the_nearest_caption(
    tmp_path: Path, base: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (trained(tmp_path / mode, base, backbone, mode) for mode in ("frozen", "lora"))
    evaluate.run(evaluate.Args(one, bootstrap=100, beside=(other,), gallery=4))
    result = read_json(one / "result.json")
    names = ["nearest_caption", "frozen: prefix_captioner", "lora: prefix_captioner"]
    assert [row["name"] for row in result["rows"]] == names
    assert [row["selected"] for row in result["rows"]] == [False, True, False]
    assert (result["baseline"], result["metric"]) == ("nearest_caption", "cider_d")
    for row in result["rows"]:
        assert f"cider_d@{TEST}" in row["metrics"]
        assert bool(row["vs_baseline"]) == (row["adapter"] == "prefix_captioner")
        assert "diversity" in row
        assert row["val"]["cider_d"] >= 0
    assert result["rows"][0]["trainable_parameters"] == 0
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [tuple(names[1:])]
    values = [row["metrics"][f"bleu1@{TEST}"]["value"] for row in result["rows"]]
    gap = result["pairs"][0]["metrics"][f"bleu1@{TEST}"]
    assert gap["difference"] == pytest.approx(values[1] - values[2])
    assert [one["kind"] for one in result["captions"]] == ["best"] * 2 + ["worst"] * 2
    assert [said["name"] for said in result["captions"][0]["said"]] == names
    for run in (one, other):  # the test split was opened for both
        assert [entry["rows"] for entry in read_jsonl(run / "test_openings.jsonl")] == [names]
    said = capsys.readouterr().out
    assert f"cider_d@{TEST} on test" in said
    assert "* frozen: prefix_captioner" in said


def test_the_nearest_caption_is_the_first_of_the_nearest_training_image(
    base: Path, data: SplitFeatures, backbone: Backbone
) -> None:
    train = open_features(base / "features", "train", backbone)
    adapter = build(make_config("nearest_caption"), backbone, train)
    near = (F.normalize(data.image_embeds, dim=1) @ F.normalize(train.image_embeds, dim=1).T).max(1)
    assert speak(adapter, data) == [caption(row) for row in near.indices.tolist()]
    with pytest.raises(ConfigError, match="no captions without its training images"):
        build(make_config("nearest_caption"), backbone).captions(data.image_embeds)


def test_the_baseline_is_measured_on_val_as_a_run(
    tmp_path: Path, base: Path, backbone: Backbone
) -> None:
    train, val = (open_features(base / "features", split, backbone) for split in ("train", "val"))
    run = Run(make_config("nearest_caption"), backbone, train, val, tmp_path, METRIC)
    row = run.advance()
    assert run.finished
    images = (F.normalize(x.image_embeds, dim=1) for x in (val, train))
    near = (next(images) @ next(images).T).argmax(1).tolist()
    human = References([[caption(24 + n, v) for v in (0, 1)] for n in range(8)])
    expected = score_captions([caption(n) for n in near], human).summary()
    assert row[METRIC] == pytest.approx(expected["cider_d"])
    assert row["val/bleu1"] == pytest.approx(expected["bleu1"])


def test_training_and_choosing_read_no_test_images(
    tmp_path: Path, base: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    rows = ShardSet.rows

    def noted(self: ShardSet, split: str, *more: Any) -> Iterator[dict[str, Any]]:
        read.append(split)
        return rows(self, split, *more)

    monkeypatch.setattr(ShardSet, "rows", noted)
    trained(tmp_path, base, backbone, "frozen")
    assert "val" in read
    assert "test" not in read
    with pytest.raises(DataError, match="test"):
        list(rows(ShardSet.open(base / "shards"), "test", ["id"]))


# -- searches ---------------------------------------------------------------------------------


def test_what_speaks_and_what_retrieves_is_not_searched_together(
    base: Path, tmp_path: Path
) -> None:
    assert task_of(["prefix_captioner", "nearest_caption"]) == "captioning"
    assert set(adapters_for("captioning")) == {"prefix_captioner", "nearest_caption"}
    sentence = (
        "adapters searched together must share a task: `soft_prompt` is for retrieval, "
        "`prefix_captioner` is for captioning."
    )
    adapter = ("soft_prompt", "prefix_captioner")
    with pytest.raises(ConfigError, match=sentence):
        tune.run(tune.Args(base / "features", tmp_path / "out", adapter=adapter))
    fused = tune.Args(base / "features", tmp_path / "out", adapter=("prefix_captioner",), fuse=2)
    with pytest.raises(
        ConfigError, match=r"`--fuse` must be at most 1 with `prefix_cap.*, got 2\."
    ):
        tune.run(fused)
    with pytest.raises(ConfigError, match="`prefix_captioner` is for captioning, not for retr"):
        make_config("prefix_captioner", {"task": "retrieval"})


def test_a_search_starts_from_both_of_clipcaps_settings() -> None:
    search = Search(("prefix_captioner",), METRIC, 9, 10, 0, {}, "captioning")
    first, second = search.recipes("prefix_captioner")
    assert (first["adapter.mapper"], first["adapter.lm_mode"]) == ("mlp", "full")
    assert (second["adapter.mapper"], second["adapter.lm_mode"]) == ("transformer", "frozen")
    assert (first["adapter.prefix_length"], second["adapter.prefix_length"]) == (10, 40)
    for name, value in PrefixCaptioner.VARIANTS["captioning"][0].items():
        assert second[name] == value  # and what is not searched would be the recipe's in the trial
        assert value in search.space("prefix_captioner")[name].choices
    assert first["optim.lr"] == second["optim.lr"] == 2e-5
    fixed = {key: first[key] for key in ("adapter.mapper", "adapter.lm_mode")}
    fixed |= {"adapter.prefix_length": 4, "adapter.clip_length": 4}
    (only,) = replace(search, fixed=fixed).recipes("prefix_captioner")  # in what is left, one
    assert only == first


@pytest.mark.slow
def test_a_search_of_captioners_ends_in_a_result(tmp_path: Path, base: Path) -> None:
    fields = {**BRIEF, "adapter.lm": str(base / "lm"), "adapter.beams": 2}
    words = [
        *(sys.executable, "-m", "pipelines.tune", "--features", str(base / "features")),
        *("--out", str(tmp_path / "study"), "--adapter", "prefix_captioner", "--trials", "3"),
        *("--epochs", "2", "--seed", "0", "--set", *(f"{k}={v}" for k, v in fields.items())),
    ]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    study = tmp_path / "study"
    about = json.loads((study / "study.json").read_text())
    assert (about["task"], about["metric"]) == ("captioning", METRIC)
    configs = [read_json(path) for path in sorted(study.glob("trials/*/config.json"))]
    assert len(configs) == 3
    assert {config["adapter.lm"] for config in configs} == {str(base / "lm")}
    modes = [(config["adapter.mapper"], config["adapter.lm_mode"]) for config in configs]
    assert {("mlp", "full"), ("transformer", "frozen")} <= set(modes)
    evaluate.run(evaluate.Args(study, bootstrap=100))
    result = read_json(study / "result.json")
    assert [row["name"] for row in result["rows"]] == ["nearest_caption", "prefix_captioner"]
    best = read_json(study / "best.json")
    assert result["rows"][1]["trial"] == best["per_adapter"]["prefix_captioner"]["trial"]
    assert result["rows"][0]["selected"] == (best["trial"] is None)
