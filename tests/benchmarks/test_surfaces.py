"""Recorded surfaces: recorded is what training gives, answered what was recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, distribution_to_json
from sklearn.ensemble import ExtraTreesRegressor

from benchmarks.searchers import record as recording
from benchmarks.searchers.curves import Data, train
from benchmarks.searchers.record import Args, configurations, record, write
from benchmarks.searchers.surfaces import FOLDER, Surface, encode
from search_spaces.common import choice, log_float
from tests.tiny import COLOURS
from trainables.features.classes import Classes
from trainables.features.features import open_features
from trainables.models.backbone import Backbone
from trainables.training.loop import Run
from trainables.trials.workbench import config_of

SPACE: dict[str, BaseDistribution] = {
    "optim.lr": log_float(1e-4, 1e-1),
    "adapter.init": choice("zero", "text"),
    "batch_size": choice(16, 32, None),
}


@pytest.fixture(scope="module")
def data(backbone: Backbone, features: Path) -> Data:
    """Six classes, 48 images of them; test is val."""
    classes, splits = Classes(COLOURS), {}
    for part, count in (("train", 48), ("val", 16)):
        draw = {f"{part}-{n:03}": n % 6 for n in range(count)}
        splits[part] = open_features(features, part, backbone).take(draw, classes)
    return Data(backbone, splits["train"], splits["val"], splits["val"], "classification")


def args(tmp_path: Path, adapter: str, **more: Any) -> Args:
    folder = tmp_path / "surfaces"
    asked = Args(Path("features"), Path("shards"), adapter, "tiny", count=4, epochs=3, out=folder)
    return replace(asked, **more)


@pytest.mark.parametrize("name", ["projection", "coop"])
def test_a_recorded_curve_is_what_a_run_reports(name: str, tmp_path: Path, data: Data) -> None:
    surface = Surface.load(record(args(tmp_path, name), data))
    assert len(surface.configs) == 5
    for place, (config, curves) in enumerate(zip(surface.configs, surface.curves, strict=True)):
        fields = {"name": name, "task": "classification", "epochs": 3, "seed": 0, **config}
        folder = tmp_path / str(place)
        run = Run(config_of(fields), data.backbone, data.train, data.val, folder, "val/accuracy")
        rows = [run.advance() for _ in range(3)]
        for metric in ("val/accuracy", "val/log_likelihood"):
            # Kept in single precision; trained together, sums have another order.
            assert curves[metric] == pytest.approx([row[metric] for row in rows], rel=1e-4)
        best, own = (curves[f"val/{m}likelihood"] for m in ("calibrated_", "log_"))
        assert (best >= own - 0.05).all()  # its scale leaves room for a mistake
        for metric in ("accuracy", "calibrated_likelihood"):  # test is val here
            assert (curves[f"val/{metric}"] == curves[f"test/{metric}"]).all()
    assert surface.baseline["val/accuracy"] == surface.baseline["test/accuracy"]


def test_a_killed_recording_goes_on_with_its_group(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = args(tmp_path, "projection", count=6, width=2)
    whole = Surface.load(record(replace(asked, out=tmp_path / "whole"), data))
    trained: list[int] = []

    def until_killed(*words: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(len(words[1]))
        assert all(config["patience"] == 0 for config in words[1])
        return train(*words)

    monkeypatch.setattr(recording, "train", until_killed)
    with pytest.raises(KeyboardInterrupt):
        record(asked, data)
    rest: list[int] = []
    monkeypatch.setattr(recording, "train", lambda *w: rest.append(len(w[1])) or train(*w))
    found = Surface.load(record(asked, data))
    assert sum(trained) + sum(rest) == 7
    assert found.configs == whole.configs
    for one, other in zip(found.curves, whole.curves, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    assert [path.suffix for path in asked.out.iterdir()] == [".parquet"]


def test_what_does_not_train_or_diverges_ends_early(data: Data) -> None:
    fields = {"name": "tip_adapter", "task": "classification", "epochs": 3}
    alone, tuned = train(data, [fields]), train(data, [fields | {"adapter.tune": True}])
    assert [len(one[0]["val/accuracy"]) for one in (alone, tuned)] == [1, 3]
    for batch_size, reason in ((8, "the loss became nan"), (48, "scores of epoch 2 are no numb")):
        wild = {"name": "coop", "optim.lr": 1e38, "batch_size": batch_size}
        (lost,) = train(data, [fields | wild])
        assert reason in lost["failed"]
        assert len(lost["val/accuracy"]) == 1  # CoOp's first epoch is slow


def test_one_that_diverges_leaves_the_others_theirs(data: Data) -> None:
    fields = {"name": "linear_probe", "task": "classification", "epochs": 3, "batch_size": 48}
    calm = fields | {"optim.schedule": "constant"}
    wild = calm | {"optim.lr": 1e38, "optim.weight_decay": 1e30}
    first, lost, second = train(data, [calm, wild, calm | {"optim.lr": 0.01}])
    assert [len(one["val/accuracy"]) for one in (first, second)] == [3, 3]
    assert lost["failed"]


def test_a_space_of_few_points_is_recorded_whole(tmp_path: Path) -> None:
    asked = args(tmp_path, "zero_shot", count=200)
    _, found = configurations(asked, "retrieval")
    assert len(found) == len({json.dumps(one) for one in found}) == 5


def test_random_ones_are_the_same_each_time(tmp_path: Path) -> None:
    first, again, other = (
        configurations(args(tmp_path, "projection", seed=seed), "retrieval")[1]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first[0] == other[0]  # the recipe
    assert first[1:] != other[1:]


@pytest.fixture
def surface(tmp_path: Path) -> Surface:
    """120 configurations whose curves depend on the rate and the start, and not on the rest."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rows = []
    for number in range(120):
        config = study.ask(SPACE).params
        height = np.log(config["optim.lr"]) + 5 * (config["adapter.init"] == "text")
        curve = [height + epoch + number * 1e-6 for epoch in range(4)]
        rows.append(
            {
                "start": not number,
                "config": json.dumps(config),
                "val/accuracy": curve,
                "test/accuracy": curve,
            }
        )
    rows[7] |= {"val/accuracy": [], "test/accuracy": [], "failed": "the loss became nan"}
    space = {name: distribution_to_json(one) for name, one in SPACE.items()}
    about = {"task": "classification", "epochs": 4, "space": space, "baseline": {}}
    write(tmp_path / "tiny.parquet", rows, about)
    return Surface.load(tmp_path / "tiny.parquet")


def test_a_recorded_configuration_answers_itself(surface: Surface) -> None:
    assert surface.space == SPACE
    for row, config in enumerate(surface.configs):
        assert surface.answer({**config, "name": "x"}) is surface.curves[row]
    assert surface.failed[7] == "the loss became nan"
    assert surface.recipes == surface.configs[:1]


def test_others_are_answered_by_one_that_is_alike(surface: Surface) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asked = [study.ask(SPACE).params for _ in range(60)]
    grown = ExtraTreesRegressor(100, min_samples_leaf=3, random_state=0)
    grown.fit(surface.inputs, surface.targets)
    leaves = grown.apply(surface.inputs)
    errors = []
    for config in asked:
        row = surface.nearest(config)
        own = grown.apply([encode(SPACE, config)])
        assert row == (leaves == own).sum(1).argmax()
        near = surface.configs[row]
        assert near["adapter.init"] == config["adapter.init"]
        errors.append(abs(np.log(near["optim.lr"] / config["optim.lr"])))
    assert np.median(errors) < 0.3  # of a range of 6.9


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.parquet")), ids=lambda path: path.stem)
def test_shipped_surfaces(path: Path) -> None:
    surface = Surface.load(path)
    about, epochs = surface.about, surface.about["epochs"]
    assert path.stem == f"{about['data']}.{about['adapter']}"
    assert surface.recipes
    assert len(surface.configs) > 200 or about["adapter"] == "zero_shot"
    assert "/" not in json.dumps([about["command"], about["backbone"]])  # no path of a machine
    assert set(surface.baseline) == set(surface.curves[0])
    for curves, failed in zip(surface.curves, surface.failed, strict=True):
        lengths = {len(curve) for curve in curves.values()}
        assert len(lengths) == 1
        assert failed or lengths <= {1, epochs}
        assert all(np.isfinite(curve).all() for curve in curves.values())
    assert path.stat().st_size < 200_000
