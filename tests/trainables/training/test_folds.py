"""Choosing on little data: by folds over the shots, and training without val at all."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipelines.cli import stage_main
from pipelines.report.statements import details
from pipelines.report.study import read_study
from pipelines.runs.contestants import read_contest
from pipelines.train import __main__ as train
from pipelines.tune import __main__ as tune
from pipelines.tune import flags
from pipelines.tune.study.choice import write_choice
from pipelines.tune.study.search import Search, Stopping, about_study
from pipelines.tune.study.study import open_study
from tests.one_process import Driver
from tests.shelf import shelf
from tests.trainables.adapters.test_few_shot_runs import finish
from trainables.adapters.registry import build, make_config
from trainables.errors import ConfigError, DataError
from trainables.features.features import open_features
from trainables.features.few_shot import read_draw
from trainables.files import read_json, read_jsonl, write_hashed, write_json
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import load_adapter, val_values
from trainables.training.loop import Interrupted, Run
from trainables.training.measure import examine
from trainables.trials.workbench import TrialSettings, Workbench

METRIC = "val/accuracy"
SET = {"task": "classification", "batch_size": 8, "epochs": 2, "optim.lr": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A store and a draw of 3 classes with 8 shots and 6 val images each."""
    base = tmp_path_factory.mktemp("folds")
    shelf(base, clip)
    return base


def settings(folder: Path, out: Path, folds: int = 3, **more: Any) -> TrialSettings:
    draw = folder / "base.json"
    return TrialSettings(folder / "features", out, METRIC, 0, draw=draw, folds=folds, **more)


def bench(folder: Path, out: Path, backbone: Backbone, **more: Any) -> Workbench:
    return Workbench(settings(folder, out, **more), backbone)


# -- the draw ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 8])
def test_each_shot_is_held_out_once_and_val_by_none(folder: Path, count: int) -> None:
    draw = read_draw(folder / "base.json")
    folds = draw.folds(count)
    assert len(folds) == count
    held = [member for fold in folds for member in fold.val]
    assert sorted(held, key=lambda m: m.id) == sorted(draw.train, key=lambda m: m.id)
    for fold in folds:
        assert {m.label for m in fold.val} == {m.label for m in fold.train} == {0, 1, 2}
        assert {*fold.val, *fold.train} == {*draw.train}
    sizes = [len(fold.val) for fold in folds]
    assert max(sizes) - min(sizes) <= 1  # classes begin at different folds


def test_more_folds_than_shots_or_one_shot_is_refused(folder: Path) -> None:
    draw = read_draw(folder / "base.json")
    for count in (1, 9):
        with pytest.raises(DataError, match=rf"from 2 to 8, the shots .* got {count}\.$"):
            draw.folds(count)
    one = dataclasses.replace(draw, train=tuple({m.label: m for m in draw.train}.values()))
    with pytest.raises(DataError, match="must be 0 with a draw of 1 shot"):
        one.folds(2)


# -- a run with folds ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear_probe", "coop", "tip_adapter", "zero_shot"])
def test_what_is_measured_is_val_and_each_shot_by_a_run_that_had_not_seen_it(
    name: str, folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    config = make_config(name, {**SET, "optim.lr": 0.01})
    run = finish(bench(folder, tmp_path / "run", backbone).run(config, tmp_path / "run"))
    draw, store = read_draw(folder / "base.json"), folder / "features"
    train_split, val_split = (open_features(store, part, backbone) for part in ("train", "val"))
    right = []
    parts = [(draw, val_split), *((fold, train_split) for fold in draw.folds(3))]
    for number, (fold, data) in enumerate(parts):
        own = Run(
            config, backbone, fold.of(train_split, "train"), None, tmp_path / f"{number}", METRIC
        )
        finish(own)
        right.append(examine(own.adapter, fold.of(data, "val")).values["accuracy"])
    expected = torch.cat(right)
    assert len(expected) == 3 * (6 + 8)
    assert run.rows[-1][METRIC] == pytest.approx(float(expected.mean()))
    if run.best is run.rows[-1]:
        kept = val_values(tmp_path / "run" / "best")
        torch.testing.assert_close(kept["value"], expected.float())
        assert len(kept["image"].unique()) == len(expected)


def test_killed_within_a_fold_it_goes_on_to_the_same_rows(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    config = make_config("clip_adapter", SET)
    whole = finish(bench(folder, tmp_path, backbone).run(config, tmp_path / "whole"))
    for cut in (2, 4, 7, 9, 13):
        out = tmp_path / f"cut{cut}"
        run = bench(folder, tmp_path, backbone).run(config, out)
        asked = itertools.count(1)
        with pytest.raises(Interrupted):
            finish(run, lambda asked=asked, cut=cut: next(asked) > cut)  # type: ignore[misc]
        again = finish(bench(folder, tmp_path, backbone).run(config, out))
        skip = ("seconds", "train/seconds")
        rows = [
            [{k: v for k, v in row.items() if k not in skip} for row in one.rows]
            for one in (whole, again)
        ]
        assert rows[0] == rows[1]


def test_a_run_that_lost_an_epoch_does_not_measure_later_folds(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    config = make_config("clip_adapter", SET)
    whole = finish(bench(folder, tmp_path, backbone).run(config, tmp_path / "run"))
    for name in ("last", "last.old"):
        shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    again = finish(bench(folder, tmp_path, backbone).run(config, tmp_path / "run"))
    assert [row[METRIC] for row in again.rows] == [row[METRIC] for row in whole.rows]


# -- closed forms --------------------------------------------------------------------------------


def test_tip_adapter_chooses_by_leave_one_out_where_val_must_not(
    folder: Path, backbone: Backbone
) -> None:
    draw = read_draw(folder / "base.json")
    data = draw.of(open_features(folder / "features", "train", backbone), "train")
    noise = torch.randn(data.image_embeds.shape, generator=torch.Generator().manual_seed(0))
    data = dataclasses.replace(data, image_embeds=data.image_embeds + 2 * noise)
    adapter: Any = build(make_config("tip_adapter"), backbone, data)
    adapter.end_epoch(1, None)
    chosen = float(adapter.alpha), float(adapter.beta)
    texts = draw.classes.text_embeds(backbone)
    images = F.normalize(data.image_embeds, dim=-1)
    assert data.labels is not None

    def right(alpha: float, beta: float) -> int:
        count = 0
        for n, label in enumerate(data.labels.tolist()):  # type: ignore[union-attr]
            others = [m for m in range(len(images)) if m != n]
            near = torch.exp(-beta * (1 - images[n] @ images[others].T))
            values = F.one_hot(data.labels[others], 3).float()  # type: ignore[index]
            count += (
                int((adapter.tau * images[n] @ texts.T + alpha * near @ values).argmax()) == label
            )
        return count

    grid = [(alpha, beta) for alpha in (0.1, 1.0, 3.0) for beta in (0.1, 1.0, 3.0, 7.0)]
    assert right(*chosen) >= max(right(*one) for one in grid)
    assert "leave-one-out" in adapter.without_val


def test_trained_keys_keep_what_they_trained_with(folder: Path, backbone: Backbone) -> None:
    data = read_draw(folder / "base.json").of(
        open_features(folder / "features", "train", backbone), "train"
    )
    values = {"adapter.tune": True, "adapter.alpha": 2.0, "adapter.beta": 3.0}
    adapter: Any = build(make_config("tip_adapter", values), backbone, data)
    adapter.end_epoch(1, None)
    assert (float(adapter.alpha), float(adapter.beta)) == (2.0, 3.0)
    assert adapter.without_val == "alpha and beta stay as it trains, 2.0 and 3.0."


# -- a search ------------------------------------------------------------------------------------


def test_a_search_by_folds_says_so_from_its_choice_to_its_report(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    search = Search(
        *(("linear_probe", "tip_adapter"), METRIC, 4, 2, 1, {"batch_size": 8}, "classification"),
        folds=3,
    )
    features, draw = folder / "features", folder / "base.json"
    about = about_study(search, [1, 2], features, draw)
    assert about["folds"] == 3
    write_hashed(tmp_path / "study.json", about)
    Driver(search, settings(folder, tmp_path), 1, 1).fit()
    words = write_choice(open_study(tmp_path), search, tmp_path)
    assert words.startswith("chosen by 3 folds and val: ")
    assert "resampling 42 images" in words
    rows = read_jsonl(tmp_path / "zero_shot" / "metrics.jsonl")
    assert rows[-1][METRIC] * 42 == pytest.approx(round(rows[-1][METRIC] * 42))  # by them too
    assert any("in 3 folds" in line for line in details(read_study(tmp_path), None))
    contest = read_contest(tmp_path, only_best=False)
    assert contest.about_val() == [
        "Beside val stood 3 folds over the shots, each measured by a run that had not seen it."
    ]


def test_a_search_by_folds_may_have_two_goals_and_leaves_no_folds(
    folder: Path, tmp_path: Path
) -> None:
    fixed: dict[str, Any] = {"batch_size": 8}
    search = Search(
        *(("linear_probe", "clip_adapter"), METRIC, 4, 2, 1, fixed, "classification"),
        retains=True,
        stopping=Stopping("none"),
        folds=3,
    )
    features, new = folder / "features", (folder / "new.json",)
    write_json(
        tmp_path / "study.json", about_study(search, [], features, folder / "base.json", new)
    )
    Driver(search, settings(folder, tmp_path, retain=new), 1, 1).fit()
    study = open_study(tmp_path, retains=True)
    words = write_choice(study, search, tmp_path)
    assert words.startswith("chosen by 3 folds and val: ")
    best = read_json(tmp_path / "best.json")
    assert best["front"]
    for trial in study.get_trials():
        row = read_jsonl(tmp_path / "trials" / f"{trial.number:04d}" / "metrics.jsonl")[-1]
        assert row[METRIC] * 42 == pytest.approx(round(row[METRIC] * 42))  # val and the shots
        if "val/retained" in row:
            assert row["val/retained"] * 18 == pytest.approx(round(row["val/retained"] * 18))
    assert [*tmp_path.rglob("folds")] == []
    assert read_contest(tmp_path, only_best=False).folds == 3


def test_wrong_folds_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    def given(**more: Any) -> tune.Args:
        return tune.Args(
            folder / "features", tmp_path, **{"draw": folder / "base.json", "folds": 4, **more}
        )

    assert flags.check(given(adapter=("clip_adapter",))).folds == 4
    for more, words in (
        ({"draw": None}, "`--folds` must be 0 without `--draw`, got 4."),
        ({"folds": 9}, "`--folds` must be from 2 to 8, the shots of the smallest class, got 9."),
        ({"folds": -1}, "`--folds` must be at least 0, got -1."),
        ({"scheduler": "pbt"}, "`--folds` must be 0 with `--scheduler pbt`, got 4."),
        ({"fuse": 4}, "`--fuse` must be at most 1 with `--folds`, got 4."),
        (
            {"workers_per_trial": 2},
            "`--workers-per-trial` must be at most 1 with `--folds`, got 2.",
        ),
    ):
        with pytest.raises((ConfigError, DataError)) as error:
            flags.check(given(**more))
        assert str(error.value) == words
    study = {"folds": 4, "features": ""}
    write_hashed(tmp_path / "study.json", study)
    search = flags.check(given(folds=0))
    with pytest.raises(DataError, match="its `folds` is 4, this one's None"):
        tune._claim(tmp_path, given(folds=0), search)


def test_several_adapters_are_compared_by_folds_where_val_is_small(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def folds(out: Path = tmp_path, adapter: tuple[str, ...] = ("auto",), **more: Any) -> int:
        given = {"draw": folder / "base.json", "adapter": adapter, **more}
        search = flags.check(tune.Args(folder / "features", out, **given))
        assert len(adapter) == 2 or search.trials == max(16, 4 * len(search.adapters))
        return search.folds

    assert folds() == 4
    assert "are few to compare adapters on" in capsys.readouterr().out
    two = ("clip_adapter", "projection")
    assert folds(adapter=two[:1]) == folds(folds=0) == folds(adapter=two, fuse=2) == 0
    assert folds(adapter=two, folds=3) == 3
    for name, about in (("before", {}), ("by three", {"folds": 3})):  # goes on as it began
        (tmp_path / name).mkdir()
        write_hashed(tmp_path / name / "study.json", about)
        assert folds(tmp_path / name) == about.get("folds", 0)
    with pytest.raises(
        ConfigError, match=r"`--fuse` must be at most 1 in .*, a study with 3 folds"
    ):
        folds(tmp_path / "by three", fuse=4, adapter=("clip_adapter", "projection"))


# -- without val ---------------------------------------------------------------------------------


def without(folder: Path, out: Path, adapter: str = "clip_adapter", **more: Any) -> train.Args:
    fields = {"set": ("epochs=2", "batch_size=8"), "draw": folder / "base.json", "val": False}
    return train.Args(folder / "features", out, adapter, **{**fields, **more})


def test_without_val_the_last_epoch_is_kept_and_val_is_not_opened(
    folder: Path, tmp_path: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "features"
    shutil.copytree(folder / "features", store)
    (store / "val.safetensors").unlink()
    given = dataclasses.replace(without(folder, tmp_path / "run"), features=store)
    train.run(given)
    said = capsys.readouterr().out
    assert "without val: the last epoch is kept" in said
    assert "epoch   2/2 | loss" in said
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [name for name in rows[-1] if name.startswith("val/")] == []
    best = load_adapter(tmp_path / "run" / "best", backbone)
    last = load_adapter(tmp_path / "run" / "last", backbone)
    assert read_json(tmp_path / "run" / "best" / "state.json")["row"]["epoch"] == 2
    for one, other in zip(best.parameters(), last.parameters(), strict=True):
        assert torch.equal(one, other)
    contest = read_contest(tmp_path / "run", only_best=False)
    assert contest.about_val()[0].startswith("It was trained without val")
    assert contest.contestants[1].history()["val"] == {}
    with pytest.raises(DataError, match="its `val` is False"):
        train.run(dataclasses.replace(given, val=True, features=folder / "features"))


def test_what_needs_val_is_refused_without_it(folder: Path, tmp_path: Path) -> None:
    for more, words in (
        ({"metric": METRIC}, "`--metric` must be left out with `--no-val`, got val/accuracy."),
        ({"set": ("patience=3",)}, "`patience` must be 0 with `--no-val`, got 3: nothing says"),
        ({"retain": (folder / "new.json",)}, "`--retain` must be left out with `--no-val`"),
    ):
        with pytest.raises(ConfigError) as error:
            train.run(without(folder, tmp_path / "run", **more))
        assert str(error.value).startswith(words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--no-val", "--no_val"])
def test_a_search_without_val_is_refused_with_both_ways_out(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        stage_main("tune", ["--features", "features", flag, "--trials", "3"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: `--no-val` cannot be given here: a search chooses on val")
    assert "`--folds`" in said
    assert "`cliptune train --no-val`" in said
    assert said.count("\n") == 1


def test_what_was_to_be_chosen_on_val_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(without(folder, tmp_path / "run", "tip_adapter"))
    assert "chosen by leave-one-out over the training images" in capsys.readouterr().out


def test_folds_stand_beside_what_is_retained(
    folder: Path, tmp_path: Path, backbone: Backbone
) -> None:
    config = make_config("clip_adapter", SET)
    more = {"retain": (folder / "new.json",)}
    both = finish(bench(folder, tmp_path, backbone, **more).run(config, tmp_path / "both"))
    plain = finish(bench(folder, tmp_path, backbone).run(config, tmp_path / "plain"))
    one = settings(folder, tmp_path, folds=0, **more)
    alone = finish(Workbench(one, backbone).run(config, tmp_path / "alone"))
    assert [row[METRIC] for row in both.rows] == [row[METRIC] for row in plain.rows]
    kept = [row["val/retained"] for row in alone.rows]
    assert [row["val/retained"] for row in both.rows] == kept
