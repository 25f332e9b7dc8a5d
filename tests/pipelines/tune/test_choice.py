"""Which trial is the answer: the metric, the likelihood, the simpler adapter, or zero-shot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.report.study import read_study
from pipelines.runs.contestants import _of_study, _with_baseline
from pipelines.tune.study.choice import (
    Entrant,
    how_sure,
    likeliest,
    simplest,
    write_choice,
)
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import open_study
from tests.pipelines.tune.test_study import row, searcher
from trainables.adapters.registry import make_config
from trainables.config import to_json
from trainables.files import append_jsonl, read_json, sha256_file, write_hashed, write_json

SEARCH = Search(("coop", "linear_probe"), "val/accuracy", 4, 9, 3, {}, task="classification")
RANDOM = np.random.default_rng(0)


def entrant(adapter: str, right: int, likely: float, trial: int | None = 0, **more: Any) -> Entrant:
    """Right on the first `right` of 40 images."""
    values = (np.arange(40) < right).astype(float)
    noise = RANDOM.normal(size=40) * 0.01
    return Entrant(
        adapter,
        f"trials/{trial}",
        values.mean(),
        trial,
        **{"values": values, "likely": likely + noise - noise.mean(), "parameters": 100, **more},
    )


def test_of_accuracies_that_few_images_cannot_tell_apart_the_likeliest_is_taken() -> None:
    best = entrant("coop", 22, -1.5, 0)
    near = entrant("coop", 20, -1.0, 1)  # 2 images of 40 behind
    far = entrant("coop", 8, -0.5, 2)
    assert likeliest([best, near, far]) is near
    assert likeliest([best, far]) is best


def test_many_images_leave_the_choice_to_the_metric() -> None:
    def large(one: Entrant) -> Entrant:
        assert one.values is not None
        assert one.likely is not None
        more = {"values": one.values.repeat(100), "likely": one.likely.repeat(100)}
        return Entrant(one.adapter, one.path, one.value, one.trial, **more)

    best, near = large(entrant("coop", 22, -1.5, 0)), large(entrant("coop", 20, -1.0, 1))
    assert likeliest([best, near]) is best


def test_of_equally_likely_adapters_the_simpler_is_taken() -> None:
    complex_, simple = entrant("coop", 22, -1.0), entrant("linear_probe", 21, -1.001, parameters=9)
    assert simplest([complex_, simple]) is simple
    worse = entrant("linear_probe", 21, -1.1, parameters=9)
    assert simplest([complex_, worse]) is complex_


def test_without_likelihood_the_metric_decides_and_a_tie_is_zero_shots() -> None:
    plain = Entrant("zero_shot", "zero_shot", 0.5)
    same, better = Entrant("lora", "trials/0", 0.5, 0), Entrant("lora", "trials/1", 0.6, 1)
    assert simplest([plain, same]) is plain
    assert simplest([plain, better]) is better
    assert how_sure(better, [plain, better], [plain, better]) == {}  # of older folders


def test_how_sure_is_a_share_of_resamples_in_which_ties_count_half() -> None:
    one, twin = entrant("coop", 20, -1.0), entrant("linear_probe", 20, -1.0, 1)
    twin = Entrant("linear_probe", "trials/1", one.value, 1, values=one.values, likely=one.likely)
    sure = how_sure(one, [one, twin], [one, twin])
    assert (sure["over"], sure["probability"], sure["images"]) == ("linear_probe", 0.5, 40)
    worse = entrant("zero_shot", 5, -2.0, None)
    sure = how_sure(one, [worse, one], [worse, one])
    assert sure["probability"] == sure["over_baseline"] == 1.0


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two trials, of which the second is of the other adapter and likelier."""
    asks = searcher(tmp_path, SEARCH)
    for number, (right, likely) in enumerate([(22, -1.5), (20, -1.0)]):
        asks.suggest(f"ray{number}")
        asks.on_trial_complete(
            f"ray{number}", row(number, 1, right / 40, "finished") | {"val/accuracy": right / 40}
        )
        keep(tmp_path / f"trials/{number:04d}", right, likely)
    write_json(tmp_path / "study.json", {"task": "classification", "metric": "val/accuracy"})
    return tmp_path


def keep(folder: Path, right: int, likely: float) -> None:
    (folder / "best").mkdir(parents=True)
    tensors = {
        "value": (torch.arange(40) < right).float(),
        "image": torch.arange(40, dtype=torch.int32),
        "calibrated_likelihood": torch.linspace(likely - 0.5, likely + 0.5, 40),
    }
    save_file(tensors, folder / "best" / "val.safetensors")
    seal(folder / "best")


def seal(checkpoint: Path) -> None:
    """The manifest of what is in it."""
    files = {path.name: sha256_file(path) for path in checkpoint.glob("*.safetensors")}
    write_hashed(checkpoint / "manifest.json", {"files": files})


def zero_shot(study: Path, right: int, likely: float) -> None:
    config = make_config("zero_shot", {"task": "classification"})
    write_json(study / "zero_shot" / "config.json", to_json(config))
    append_jsonl(study / "zero_shot" / "metrics.jsonl", [{"epoch": 1, "val/accuracy": right / 40}])
    keep(study / "zero_shot", right, likely)


def test_best_json_says_what_was_chosen_and_how_surely(study: Path) -> None:
    words = write_choice(open_study(study), SEARCH, study)
    best = read_json(study / "best.json")
    assert (best["trial"], best["path"]) == (1, "trials/0001")
    assert best["per_adapter"].keys() == {"coop", "linear_probe"}
    assert best["chosen"]["probability"] == 1.0
    assert best["chosen"]["words"] == words
    assert "100% probability over coop" in words
    assert [one.selected for one in _of_study(study, only_best=False)] == [False, True]
    assert read_study(study).best() == read_study(study).trials[1]


def test_where_no_adapter_beats_zero_shot_it_is_the_answer(study: Path) -> None:
    zero_shot(study, 22, -0.9)
    words = write_choice(open_study(study), SEARCH, study)
    best = read_json(study / "best.json")
    assert (best["adapter"], best["trial"], best["path"]) == ("zero_shot", None, "zero_shot")
    assert words.startswith("chosen on val: zero-shot")
    assert words.endswith("no adapter beat it.")
    for only_best in (False, True):
        found = _with_baseline(_of_study(study, only_best), "classification")
        assert found[0].name == "zero_shot"
        assert [one.selected for one in found] == [True] + [False] * (len(found) - 1)
        assert len(found) == (1 if only_best else 3)
    assert read_study(study).prefers_baseline


def test_an_older_study_without_values_of_single_images_is_chosen_by_the_metric(
    study: Path,
) -> None:
    for file in study.glob("trials/*/best/val.safetensors"):
        file.unlink()
        seal(file.parent)
    write_choice(open_study(study), SEARCH, study)
    assert read_json(study / "best.json")["trial"] == 0
