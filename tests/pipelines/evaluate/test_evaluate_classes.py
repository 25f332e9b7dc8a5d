"""`evaluate` on runs of classes: other classes than the own, probabilities and sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.evaluate import __main__ as evaluate
from tests.things import in_this_process, things
from trainables.data.shards import Seal, ShardSet
from trainables.errors import ConfigError, DataError
from trainables.features.features import backbone_of, embed_split
from trainables.features.few_shot import read_draw, write_draw
from trainables.files import (
    read_json,
    read_jsonl,
    sha256_file,
    sha256_json,
    write_hashed,
    write_json,
)
from trainables.metrics.calibration_error import brier, calibration_error
from trainables.training.checkpoint import load_adapter
from trainables.training.predict import score


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return things(tmp_path_factory.mktemp("things"))


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, shards: Path, clip: Path) -> Path:
    """Draws of both halves, features, and an open and a closed adapter trained on base."""
    folder = tmp_path_factory.mktemp("halves")
    work: list[tuple[object, ...]] = [
        ("draw", "--shards", shards, "--shots", 2, "--part", part, "--out", folder / f"{part}.json")
        for part in ("base", "new")
    ]
    features = folder / "features"
    work.append(("encode", "--shards", shards, "--backbone", clip, "--out", features))
    given = ("train", "--features", features, "--draw", folder / "base.json")
    work.append((*given, "--adapter", "coop", "--set", "epochs=1", "--out", folder / "coop"))
    work.append((*given, "--adapter", "tip_adapter", "--out", folder / "tip"))
    assert [in_this_process(*words) for words in work] == [0] * len(work)
    return folder


def test_new_classes_are_measured_beside_the_own_ones(
    halves: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, new = halves / "coop", halves / "new.json"
    for _ in range(2):  # the second finds all up to date
        evaluate.run(evaluate.Args(folder, bootstrap=100))
        evaluate.run(evaluate.Args(folder, bootstrap=100, draw=new))
    openings = read_jsonl(folder / "test_openings.jsonl")
    assert [one.get("part") for one in openings] == [None, "new"]
    assert openings[1]["draw"] == read_draw(new).key
    assert "has been opened" not in capsys.readouterr().out  # other images each time
    evaluate.run(evaluate.Args(folder, bootstrap=200, draw=new))
    assert "has been opened 2 times" in capsys.readouterr().out
    own, other = (read_json(folder / name) for name in ("result.json", "result-new.json"))
    assert own["inputs"] != other["inputs"]
    sentence = "Trained on the 2 classes of part `base`, measured on the 2 of part `new`."
    assert sentence in other["protocol"]
    assert sentence not in own["protocol"]
    # Val is that of the classes trained on, for zero-shot and for the adapter.
    assert own["rows"][0]["val"] == other["rows"][0]["val"]


def test_probabilities_and_sets_are_measured_on_test_by_what_val_showed(
    halves: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = halves / "coop"
    for name in ("result.json", "result-new.json"):
        (folder / name).unlink(missing_ok=True)
    capsys.readouterr()
    evaluate.run(evaluate.Args(folder, bootstrap=100))
    said = capsys.readouterr().out
    evaluate.run(evaluate.Args(folder, bootstrap=100, draw=halves / "new.json"))
    own, other = (read_json(folder / name) for name in ("result.json", "result-new.json"))
    (store,) = (halves / "features").glob("*/manifest.json")
    backbone, opened = backbone_of(store.parent), ShardSet.open(shards)
    seal, draw = Seal("test"), read_draw(halves / "base.json")
    data = embed_split(backbone, opened, "test", seal=seal)
    data = draw.among(data, opened.rows("test", ["id", "label"], seal))
    adapter = load_adapter(folder / "best", backbone)
    assert data.labels is not None
    assert adapter.calibration is not None
    scores = score(adapter, data, draw.classes)
    found = own["rows"][1]["calibration"]
    val = len(draw.val)
    assert found["val_images"] == val
    assert found["scale"] == {"before": adapter.tau, "after": adapter.calibration.scale}
    for time, scale in found["scale"].items():
        shares = (scale * scores.double()).softmax(1)
        confidences, chosen = shares.max(1)
        told = found[time]
        assert told["ece"] == pytest.approx(calibration_error(confidences, chosen == data.labels))
        own_shares = shares[torch.arange(len(shares)), data.labels]
        assert told["nll"]["value"] == pytest.approx(float(-own_shares.log().mean()))
        assert told["brier"]["value"] == pytest.approx(float(brier(shares, data.labels).mean()))
        assert told["nll"]["low"] <= told["nll"]["value"] <= told["nll"]["high"]
        assert sum(one["images"] for one in told["bins"]) == len(scores)
    kinds = [(one["kind"], one["time"]) for one in found["sets"]]
    assert kinds == [(k, t) for k in ("split", "adaptive") for t in ("before", "after")]
    if val < 9:
        assert all(one["coverage"]["value"] == 1 for one in found["sets"])
    (reason,) = found["without"]
    assert reason.startswith("class-wise sets at 0.9 need 9 val images of each class")
    assert "probabilities on test, before -> after a temperature fitted on val" in said
    assert "sets of classes at 90%" in said
    for row, elsewhere in zip(own["rows"], other["rows"], strict=True):
        assert row["calibration"]["scale"] == elsewhere["calibration"]["scale"]
        assert "sets" not in elsewhere["calibration"]  # val had none of these classes
    assert any("Conformal sets at 90%" in line for line in own["protocol"])
    assert not any("Conformal sets" in line for line in other["protocol"])


def test_a_run_that_diverged_in_its_last_step_is_refused_before_test_is_opened(
    halves: Path, tmp_path: Path
) -> None:
    shutil.copytree(halves / "coop", tmp_path / "run")
    run = tmp_path / "run"
    for name in ("test_openings.jsonl", "result.json", "result-new.json"):
        (run / name).unlink(missing_ok=True)
    best = run / "best"
    stored = load_file(best / "adapter.safetensors")
    save_file(
        {name: torch.full_like(t, 3e38) for name, t in stored.items()},
        best / "adapter.safetensors",
    )
    (best / "calibration.safetensors").unlink()
    manifest = read_json(best / "manifest.json")
    del manifest["sha256"], manifest["files"]["calibration.safetensors"]
    manifest["files"]["adapter.safetensors"] = sha256_file(best / "adapter.safetensors")
    write_json(best / "manifest.json", manifest | {"sha256": sha256_json(manifest)})
    with pytest.raises(DataError, match="`coop` gives scores that are no numbers"):
        evaluate.run(evaluate.Args(run, bootstrap=100))
    assert not (run / "test_openings.jsonl").exists()


def test_without_val_nothing_is_calibrated_and_no_set_promised(
    halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store,) = (halves / "features").glob("*/manifest.json")
    run = tmp_path / "run"
    words = ("train", "--features", store.parent, "--draw", halves / "base.json", "--adapter")
    assert in_this_process(*words, "coop", "--set", "epochs=1", "--no-val", "--out", run) == 0
    evaluate.run(evaluate.Args(run, bootstrap=100))
    assert all("calibration" not in row for row in read_json(run / "result.json")["rows"])
    assert "before -> after" not in capsys.readouterr().out


def test_an_adapter_that_knows_only_its_own_classes_is_refused(halves: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate.run(evaluate.Args(halves / "tip", draw=halves / "new.json"))
    assert str(caught.value) == (
        "`tip_adapter` knows only the 2 classes of part `base` that it was trained on: "
        "it cannot be measured on part `new`."
    )
    assert not (halves / "tip/test_openings.jsonl").exists()
    evaluate.run(evaluate.Args(halves / "tip", bootstrap=100, draw=halves / "base.json"))
    assert (halves / "tip/result-base.json").is_file()


def test_a_draw_of_other_shards_and_a_run_on_captions_are_refused(
    halves: Path, tmp_path: Path
) -> None:
    draw = read_draw(halves / "new.json")
    object.__setattr__(draw, "shards_sha256", "0" * 64)
    write_draw(tmp_path / "draw.json", draw)
    with pytest.raises(DataError, match="was drawn from other shards"):
        evaluate.run(evaluate.Args(halves / "coop", draw=tmp_path / "draw.json"))
    about = read_json(halves / "coop/run.json")
    config = read_json(halves / "coop/config.json")
    plain = {name: about[name] for name in about if not name.startswith("draw")}
    write_hashed(tmp_path / "run.json", plain | {"task": "retrieval", "metric": "val/t2i_r1"})
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ConfigError, match="was trained on captions"):
        evaluate.run(evaluate.Args(tmp_path, draw=halves / "new.json"))
