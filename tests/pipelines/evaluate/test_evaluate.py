"""The sealed test split, opened on a tiny study: what is measured, logged and refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from pipelines.evaluate import __main__ as evaluate
from pipelines.evaluate import gallery
from pipelines.evaluate.__main__ import Args
from pipelines.evaluate.protocol import Protocol, caveats
from pipelines.evaluate.standings import correct, pairs, verdict
from pipelines.report import __main__ as report
from pipelines.report.result import read_result
from pipelines.runs.provenance import duplicates
from tests.tiny import caption, picture, tiny_features
from trainables.adapters.registry import make_config
from trainables.data.batches import Predictions
from trainables.data.shards import SCHEMA, Seal, ShardSet
from trainables.errors import CheckpointError, ConfigError, DataError
from trainables.features.features import embed_split, open_features
from trainables.features.split import SplitFeatures
from trainables.files import read_json, sha256_bytes, sha256_file, write_json
from trainables.metrics.retrieval import retrieval_metrics
from trainables.models.backbone import Backbone
from trainables.statistics.bootstrap import Bootstrap, holm
from trainables.training.loop import Run
from trainables.training.predict import predict

METRIC = "val/t2i_r1"
TEST = 18  # rows of the test split; the last has the bytes of the first
IMAGES = TEST - 1


def write_shards(folder: Path, count: int = TEST) -> ShardSet:
    """A test split of `count` images with two captions each, in the real format."""
    folder.mkdir()
    rows = []
    for index in range(count):
        image = picture(100 + index % (TEST - 1))
        rows.append(
            {"id": f"test-{index}", "image": image, "width": 40, "height": 40, "label": None}
            | {"captions": [caption(100 + index, v) for v in (0, 1)], "class_name": None}
            | {"split": "test", "sha256": sha256_bytes(image)}
        )
    path = folder / "test-00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    entry = {"file": path.name, "split": "test", "rows": count, "sha256": sha256_file(path)}
    write_json(
        folder / "manifest.json",
        {
            **{"format": "cliptune-shards-1", "source": {}, "shards": [entry], "classes": {}},
            "splits": {"test": {"images": count, "captions": 2 * count}},
            **{"quarantined": {"truncated JPEG": 3}, "notes": {"animated": 1}, "created": ""},
        },
    )
    return ShardSet.open(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, clip: Path, backbone: Backbone) -> Path:
    return write_store(tmp_path_factory.mktemp("evaluate"), clip, backbone)


def write_store(base: Path, clip: Path, backbone: Backbone, count: int = TEST) -> Path:
    """A feature store that names its shards and its backbone, as `encode` writes it."""
    shards = write_shards(base / "shards", count)
    folder = tiny_features(base / "features", pixels=True, clip=clip)
    manifest = read_json(folder / "manifest.json")
    manifest |= {"shards": str(shards.folder), "shards_sha256": shards.digest}
    manifest["backbone"]["fingerprint"] = backbone.fingerprint
    write_json(folder / "manifest.json", manifest)
    return folder


def trained(folder: Path, store: Path, backbone: Backbone, name: str, **values: Any) -> Run:
    config = make_config(name, {"epochs": 1, "batch_size": 12, **values})
    train, val = (open_features(store, split, backbone) for split in ("train", "val"))
    run = Run(config, backbone, train, val, folder, METRIC)
    run.advance()
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: Path, backbone: Backbone) -> Path:
    """A study of three trials: an adapter on features, one on pixels, and zero-shot itself."""
    folder = tmp_path_factory.mktemp("study")
    own = {}
    for number, (name, values) in enumerate(
        [
            ("soft_prompt", {"optim.lr": 0.1}),
            ("lora", {"adapter.tower": "vision"}),
            ("zero_shot", {"epochs": 0}),
        ]
    ):
        path = f"trials/{number:04d}"
        best = trained(folder / path, store, backbone, name, **values).best
        assert best is not None
        own[name] = {"trial": number, "adapter": name, "value": best[METRIC], "path": path}
    write_json(folder / "study.json", {"features": str(store), "metric": METRIC})
    write_json(folder / "best.json", {**own["soft_prompt"], "metric": METRIC, "per_adapter": own})
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


def measured(run: Path, **flags: Any) -> dict[str, Any]:
    evaluate.run(Args(run, bootstrap=100, **flags))
    result: dict[str, Any] = read_json(run / "result.json")
    return result


def test_the_result_holds_every_row_beside_zero_shot(study: Path) -> None:
    result = measured(study)
    assert result["format"] == "cliptune-result-2"
    assert [row["name"] for row in result["rows"]] == ["zero_shot", "soft_prompt", "lora"]
    assert [row["selected"] for row in result["rows"]] == [False, True, False]
    names = {f"t2i_{m}@{IMAGES}" for m in ("r1", "r5", "r10", "medr", "mrr")}
    names |= {f"i2t_{m}@{2 * TEST}" for m in ("r1", "r5", "r10", "medr", "mrr")}
    for row in result["rows"]:
        assert set(row["metrics"]) == names
        for found in row["metrics"].values():
            assert found["low"] <= found["value"] <= found["high"]
    zero, prompt, lora = result["rows"]
    assert zero["vs_baseline"] == {}
    assert zero["trainable_parameters"] == 0
    gap = prompt["vs_baseline"][f"t2i_mrr@{IMAGES}"]
    expected = (
        prompt["metrics"][f"t2i_mrr@{IMAGES}"]["value"]
        - zero["metrics"][f"t2i_mrr@{IMAGES}"]["value"]
    )
    assert gap["difference"] == pytest.approx(expected)
    assert gap["low"] <= gap["difference"] <= gap["high"]
    assert expected != 0
    assert prompt["epochs"] == 1
    assert prompt["val"]["t2i_r1"] == read_json(study / "best.json")["value"]
    assert 0 <= zero["val"]["t2i_r1"] <= 1
    assert zero["val"].keys() == prompt["val"].keys()
    assert lora["config"]["adapter.tower"] == "vision"
    assert result["data"]["quarantined"] == {"truncated JPEG": 3}
    assert result["metric"] == "t2i_r1"


def test_zero_shot_is_the_frozen_backbone_on_the_test_images(
    study: Path, store: Path, backbone: Backbone
) -> None:
    """The same numbers as the model's own towers give, without any of evaluate's code."""
    result = measured(study)
    shards = ShardSet.open(read_json(store / "manifest.json")["shards"])
    data = embed_split(backbone, shards, "test", seal=Seal("a test of the stage itself"))
    texts = [caption(100 + i, v) for i in range(TEST) for v in (0, 1)]
    encoded = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        embeds = backbone.model.get_text_features(**encoded).pooler_output
    unit = torch.nn.functional.normalize
    own = Predictions(unit(data.image_embeds[:IMAGES], dim=1), unit(embeds, dim=1))
    image = torch.tensor([*range(IMAGES), 0]).repeat_interleave(2)  # of each caption
    expected = retrieval_metrics(own, torch.arange(IMAGES), image)
    found = {k.split("@")[0]: m["value"] for k, m in result["rows"][0]["metrics"].items()}
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_second_call_changes_nothing_and_opens_nothing(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(study)
    monkeypatch.setattr(
        "trainables.features.features.embed_split", None
    )  # would fail if it were called
    assert measured(study) == first
    assert "up to date" in capsys.readouterr().out
    assert len(first["test_openings"]) == 1


def test_every_other_call_is_one_more_opening_and_says_so(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(study, adapters="best")
    assert "opened" not in capsys.readouterr().out
    result = measured(study)
    assert "has been opened 2 times" in capsys.readouterr().out
    openings = [entry["rows"] for entry in result["test_openings"]]
    assert openings == [["zero_shot", "soft_prompt"], ["zero_shot", "soft_prompt", "lora"]]


def test_openings_that_a_damaged_log_forgot_are_counted_on_every_page(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        measured(study, adapters=("best", "per-adapter")[number])
    log = study / "test_openings.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    capsys.readouterr()
    result = measured(study, adapters="best")
    said = "The log of test openings is damaged: its last line was cut."
    assert len(result["test_openings"]) == 3
    assert any(said in line for line in result["protocol"])
    assert f"warning: {said}" in capsys.readouterr().out


def test_an_opening_that_fails_is_logged_all_the_same(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.evaluate.protocol.per_query", None)
    with pytest.raises(TypeError):
        measured(study)
    assert not (study / "result.json").exists()
    monkeypatch.undo()
    assert len(measured(study)["test_openings"]) == 2


def test_a_damaged_checkpoint_is_refused_before_the_seal_is_broken(study: Path) -> None:
    path = study / "trials/0000/best/adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="altered"):
        measured(study)
    assert not (study / "test_openings.jsonl").exists()


def test_changed_shards_are_refused_before_the_seal_is_broken(
    study: Path, store: Path, tmp_path: Path
) -> None:
    features = Path(shutil.copytree(store, tmp_path / "features"))
    manifest = read_json(features / "manifest.json")
    write_json(features / "manifest.json", manifest | {"shards_sha256": "0" * 64})
    about = read_json(study / "study.json")
    write_json(study / "study.json", about | {"features": str(features)})
    with pytest.raises(DataError, match="changed since"):
        measured(study)
    assert not (study / "test_openings.jsonl").exists()


def test_a_single_training_run_is_measured_too(
    tmp_path: Path, store: Path, backbone: Backbone
) -> None:
    trained(tmp_path / "run", store, backbone, "projection")
    write_json(tmp_path / "run/run.json", {"features": str(store), "metric": "val/t2i_mrr"})
    result = measured(tmp_path / "run")
    assert [(row["name"], row["selected"]) for row in result["rows"]] == [
        ("zero_shot", False),
        ("projection", True),
    ]
    assert result["metric"] == "t2i_mrr"


def test_a_run_beside_is_compared_with_this_one(study: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(study, tmp_path / "other"))
    evaluate.run(evaluate.Args(study, adapters="best", bootstrap=100, gallery=0, beside=(other,)))
    result = read_json(study / "result.json")
    (pair,) = result["pairs"]
    assert (pair["a"], pair["b"]) == ("study: soft_prompt", "other: soft_prompt")
    assert {gap["difference"] for gap in pair["metrics"].values()} == {0.0}  # it is the same run
    assert (other / "test_openings.jsonl").is_file()
    assert read_result(study / "result.json") is not None


def test_a_chosen_zero_shot_is_the_baseline_row_and_a_tuned_template_is_not(
    study: Path, store: Path, backbone: Backbone
) -> None:
    best = read_json(study / "best.json")
    write_json(study / "best.json", best | best["per_adapter"]["zero_shot"])
    result = measured(study, adapters="best")
    assert [(row["name"], row["selected"]) for row in result["rows"]] == [("zero_shot", True)]
    assert result["gallery"] == []
    shutil.rmtree(study / "trials/0002")
    values = {"epochs": 0, "adapter.template": "a photo of {}"}
    trained(study / "trials/0002", store, backbone, "zero_shot", **values)
    result = measured(study, adapters="best")
    assert [(row["name"], row["selected"]) for row in result["rows"]] == [
        ("zero_shot", False),
        ("zero_shot, own template", True),
    ]


def test_folders_without_a_run_and_flags_out_of_range_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither study\.json nor run\.json"):
        evaluate.run(Args(tmp_path))
    write_json(tmp_path / "study.json", {"features": "."})
    with pytest.raises(DataError, match=r"no best\.json"):
        evaluate.run(Args(tmp_path))
    with pytest.raises(ConfigError, match="`--bootstrap` must be at least 100, got 10"):
        evaluate.run(Args(tmp_path, bootstrap=10))


def test_the_report_can_read_the_result(study: Path) -> None:
    expected = measured(study)
    result = read_result(study / "result.json")
    assert result is not None
    assert result.key == f"t2i_r1@{IMAGES}"
    assert result.baseline is not None
    assert result.selected is not None
    assert result.selected.name == "soft_prompt"
    assert [query.text for query in result.gallery] == [q["query"] for q in expected["gallery"]]
    assert all(query.truth for query in result.gallery)


def test_the_table_says_value_interval_difference_and_verdict(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(study)
    out = capsys.readouterr().out
    assert f"t2i_r1@{IMAGES} on test" in out
    line = r"\* soft_prompt +0\.\d{4} \[0\.\d{4}, \d\.\d{4}\] +[+-]\d\.\d{4} \[[+-].*zero-shot"
    assert re.search(line, out)
    assert "1 of 18 image rows repeat" in out


def gap(low: float, high: float, p: float, among: float) -> dict[str, float]:
    return {"low": low, "high": high, "p": p, "p_holm": among}


def test_a_difference_whose_interval_holds_zero_shows_nothing() -> None:
    open_ = "not shown to beat zero-shot (p = "
    assert verdict(gap(-0.01, 0.03, 0.2, 0.2)).startswith(open_)
    assert verdict(gap(0.0, 0.03, 0.05, 0.05)) == f"{open_}0.0500, Holm 0.0500)"
    assert verdict(gap(0.01, 0.03, 0.001, 0.001)).startswith("beats")
    assert verdict(gap(-0.03, -0.01, 0.001, 0.001)).startswith("worse")


def test_the_best_of_five_rows_needs_a_fifth_of_the_p() -> None:
    rows = [{"accuracy@3": gap(0.01, 0.03, p, 0)} for p in (0.02, 0.3, 0.5, 0.004, 0.04)]
    for row in rows:
        del row["accuracy@3"]["p_holm"]
    correct(rows)
    found = [row["accuracy@3"] for row in rows]
    assert [one["p_holm"] for one in found] == pytest.approx([0.08, 0.6, 0.6, 0.02, 0.12])
    assert [verdict(one)[:5] for one in found] == ["not s", "not s", "not s", "beats", "not s"]
    correct([])


def test_every_two_rows_have_holms_p_among_as_many_pairs(store: Path) -> None:
    protocol = Protocol(open_features(store, "train").one_row_an_image(), 1000)
    random = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(48, 16, generator=random), dim=1)
    images = [
        F.normalize(texts[::2] + spread * torch.randn(24, 16, generator=random), dim=1)
        for spread in (0.5, 0.1, 0.6, 0.9)
    ]
    models = [protocol.measure(Predictions(own, texts)) for own in images]
    found = pairs(["zero_shot", "a", "b", "c"], models, protocol)
    assert [(pair["a"], pair["b"]) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    for metric in found[0]["metrics"]:
        own = [pair["metrics"][metric] for pair in found]
        assert [one["p_holm"] for one in own] == holm([one["p"] for one in own])
    found_p = found[1]["metrics"]["t2i_mrr@24"]
    assert found_p["p"] < found_p["p_holm"] < 0.05


def test_what_too_few_resamples_or_images_cannot_show_is_said() -> None:
    assert caveats(Bootstrap(50, 2000), 10) == []
    assert caveats(Bootstrap(50, 2000), 0) == []
    (said,) = caveats(Bootstrap(50, 100), 10)
    words = (
        r"Holm's p of 10 differences is at least (\S+) with 100 res.*`--bootstrap (\d+)` would do"
    )
    found = re.search(words, said)
    assert found is not None
    assert float(found[1]) >= 0.05
    assert caveats(Bootstrap(50, int(found[2])), 10) == []
    (few,) = caveats(Bootstrap(5, 2000), 1)
    assert few.endswith("with 5 images, however many resamples.")
    assert "is at least 0.06" in few


def test_of_one_test_image_there_are_numbers_and_a_caveat(
    tmp_path: Path, clip: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path, clip, backbone, 1)
    trained(tmp_path / "run", store, backbone, "projection", **{"optim.lr": 0.1})
    write_json(tmp_path / "run/run.json", {"features": str(store), "metric": METRIC})
    result = measured(tmp_path / "run")
    for row in result["rows"]:
        for found in row["metrics"].values():
            assert found["low"] == found["value"] == found["high"]
    assert {gap["p"] for gap in result["rows"][1]["vs_baseline"].values()} == {1}
    (caveat,) = result["warnings"]
    assert caveat.startswith("1 image: ")
    assert caveat in result["protocol"]
    out = capsys.readouterr().out
    assert f"warning: {caveat}" in out
    assert "not shown to beat zero-shot" in out
    report.run(report.Args(tmp_path / "run"))
    for page in ("report.html", "report.md"):
        text = (tmp_path / "run" / page).read_text()
        assert "1 image: all is true of it alone" in text
        assert not re.search(r"\bnan\b", re.sub("<style.*?</style>", "", text, flags=re.S), re.I)
    assert "NaN" not in (tmp_path / "run/result.json").read_text()


def test_the_protocol_says_which_question_an_interval_answers(study: Path) -> None:
    told = " ".join(measured(study)["protocol"])
    assert "other images would change where this pool of candidates and these trained" in told
    assert "adapters with their seeds" in told
    assert "differ on m images at least 2^(1 - m)" in told


# -- the lint and the gallery -----------------------------------------------------------------


def test_duplicated_rows_are_found_named_and_grouped(study: Path) -> None:
    result = measured(study)
    found = result["data"]["duplicated_image_rows"]
    assert found["rows"] == 1
    assert found["groups"] == [["test-0", f"test-{TEST - 1}"]]
    assert "1 of 18 image rows" in found["warning"]
    assert "17 images, each with the captions of all its rows" in found["warning"]
    assert found["warning"] in result["protocol"]
    assert (result["data"]["images"], result["data"]["captions"]) == (IMAGES, 2 * TEST)


def test_without_duplicates_the_lint_is_silent(store: Path) -> None:
    found = duplicates(open_features(store, "train"))
    assert found == {"rows": 0, "groups": [], "warning": None}


def test_the_gallery_shows_gains_losses_and_what_stayed() -> None:
    before = 1 / torch.tensor([9.0, 9.0, 5.0, 500.0, 2.0, 1.0, 3.0, 3.0, 4.0, 4.0])
    after = 1 / torch.tensor([1.0, 2.0, 1.0, 100.0, 9.0, 8.0, 3.0, 3.0, 4.0, 4.0])
    # From 500 to 100 is a gain that nobody would see among five pictures: it comes last.
    assert gallery.choose(before, after, torch.arange(10), 8) == [0, 2, 1, 3, 6, 9, 4, 5]
    assert gallery.choose(before, after, torch.arange(10), 4) == [0, 2, 6, 5]


def test_what_is_short_of_its_share_is_filled_up() -> None:
    same = torch.ones(6)
    assert gallery.choose(same, same, torch.arange(6), 4) == [0, 1, 2, 3]
    assert gallery.choose(same, same, torch.arange(6), 8) == [0, 1, 2, 3, 4, 5]


def test_the_gallery_shows_an_image_once() -> None:
    before, after = 1 / torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.ones(4)
    assert gallery.choose(before, after, torch.tensor([0, 0, 1, 1]), 4) == [0, 2]


def test_gallery_entries_are_the_true_neighbours(
    study: Path, store: Path, backbone: Backbone
) -> None:
    result = measured(study, gallery=6)
    assert len(result["gallery"]) == 6
    shards = ShardSet.open(read_json(store / "manifest.json")["shards"])
    data: SplitFeatures = embed_split(backbone, shards, "test", seal=Seal("a test"))
    plain = predict(_zero_shot(backbone), data)
    texts = [caption(100 + i, v) for i in range(TEST) for v in (0, 1)]
    picture_of = {text: data.ids[place // 2 % IMAGES] for place, text in enumerate(texts)}
    for query in result["gallery"]:
        assert picture_of[query["query"]] == query["image_id"]
        scores = plain.image_embeds @ plain.text_embeds[texts.index(query["query"])]
        assert query["before"][0]["score"] == pytest.approx(float(scores.max()), abs=1e-4)
        assert len(query["before"]) == len(query["after"]) == 5
        for shown in (*query["before"], *query["after"]):
            assert shown["hit"] == (shown["id"] == query["image_id"])
            assert shown["id"] != f"test-{TEST - 1}"  # which is the first again
            assert shown["thumb"].startswith("data:image/jpeg;base64,")
    assert len(json.dumps(result["gallery"])) < 6 * 11 * 20_000


def _zero_shot(backbone: Backbone) -> Any:
    from trainables.adapters.registry import build

    return build(make_config("zero_shot", {"precision": "fp32"}), backbone)
