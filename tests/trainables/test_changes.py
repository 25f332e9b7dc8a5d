"""Hyperparameters that change while training, and the file that brings them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import stage_main
from pipelines.tune.study.schedule import Schedule, read_schedule
from tests.pipelines.train.test_train import fails
from tests.trainables.training.test_loop import bytes_of, finish, start
from tests.trainables.trials.test_stacked import assert_same_rows, assert_same_tensors
from trainables.adapters.registry import make_config
from trainables.changes import CHANGING, Change, read_changes, write_changes
from trainables.config import flatten, in_epoch, until
from trainables.errors import CheckpointError, CliptuneError
from trainables.files import read_jsonl
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import load_adapter
from trainables.training.loop import Interrupted, Run
from trainables.trials.stacked import StackedRuns

CHANGES = "2: optim.lr=0.03 temperature.scale=20.0; 3: optim.weight_decay=0.5 loss.hardness=0.9"
REWEIGHT: dict[str, Any] = {"loss__hard_negatives": "reweight", "precision": "fp32"}


def test_text_and_changes_are_each_others_inverse() -> None:
    changes = read_changes(CHANGES)
    assert [one.from_epoch for one in changes] == [2, 3]
    assert write_changes(changes) == CHANGES
    assert read_changes("") == ()
    odd = Change(2, {"optim.lr": 0.1 + 0.2})
    config = make_config("projection", {"changes": write_changes([odd])})
    assert in_epoch(config, 2).optim.lr == 0.1 + 0.2  # to the last bit


def test_an_epoch_has_the_values_that_changed_before_it() -> None:
    config = make_config("projection", {"loss.hard_negatives": "reweight", "changes": CHANGES})
    lr = [in_epoch(config, epoch).optim.lr for epoch in (1, 2, 3)]
    assert lr == [config.optim.lr, 0.03, 0.03]
    assert in_epoch(config, 3).loss.hardness == 0.9
    assert until(config, 1).changes == ""
    assert until(config, 2).changes == CHANGES.partition(";")[0]
    assert until(config, 3) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"changes": "2 optim.lr=1"}, "`changes` must read like"),
        ({"changes": "2: optim.lr"}, "`changes` must read like"),
        ({"changes": "1: optim.lr=1"}, "at epochs from 2 on"),
        ({"changes": "3: optim.lr=1; 3: optim.lr=2"}, "each later than the one before"),
        ({"changes": "2: optim.lrr=1"}, "unknown changing field `optim.lrr`. Did you mean `opt"),
        ({"changes": "2: batch_size=64"}, "unknown changing field `batch_size`"),
        ({"changes": "2: optim.lr=high"}, "`optim.lr` must be of type float, got 'high'"),
        ({"changes": "2: optim.lr=-1"}, r"`optim.lr` must be above 0, got -1\.0"),
        ({"changes": "9: optim.lr=1", "epochs": 8}, "`changes` must be in 8 epochs, got '9: opti"),
        ({"changes": "2: loss.hardness=1"}, "of `loss.hard_negatives` reweight, got 'none'"),
        (
            {"changes": "2: temperature.scale=9", "temperature.policy": "learned"},
            "of a `temperature.policy` fixed or cosine, got 'learned'",
        ),
    ],
)
def test_a_change_that_cannot_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(CliptuneError, match=said):
        make_config("projection", values)


@pytest.mark.parametrize(
    "change",
    [
        *("optim.lr=0.1", "optim.weight_decay=5", "loss.label_smoothing=0.5"),
        *("loss.hardness=3", "temperature.scale=3"),
    ],
)
def test_each_change_is_seen_from_its_epoch_on(
    change: str, tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    assert change.partition("=")[0] in CHANGING
    plain = finish(start(tmp_path / "plain", backbone, features, "projection", **REWEIGHT))
    changed = finish(
        start(
            tmp_path / "changed",
            backbone,
            features,
            "projection",
            changes=f"3: {change}",
            **REWEIGHT,
        )
    )
    loss = [[row["train/loss"] for row in run.rows] for run in (plain, changed)]
    assert loss[0][:2] == loss[1][:2]
    assert bytes_of(tmp_path / "plain") != bytes_of(tmp_path / "changed")


def test_a_run_that_changes_is_cut_anywhere_and_ends_with_the_same_bytes(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    extra = REWEIGHT | {"changes": CHANGES}
    whole = finish(start(tmp_path / "whole", backbone, features, "projection", **extra))
    for cut in range(whole.total):
        folder = tmp_path / f"cut{cut}"
        run = start(folder, backbone, features, "projection", **extra)
        with pytest.raises(Interrupted):
            finish(run, lambda run=run, cut=cut: run.step >= cut)  # type: ignore[misc]
        finish(start(folder, backbone, features, "projection", **extra))
        assert bytes_of(folder) == bytes_of(tmp_path / "whole")
        for file in ("adapter.safetensors", "config.json"):
            own, other = (one / "best" / file for one in (folder, tmp_path / "whole"))
            assert own.read_bytes() == other.read_bytes()


def test_what_lies_ahead_may_be_another_what_lies_behind_not(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    def begun(folder: str, changes: str) -> Run:
        extra = REWEIGHT | {"changes": changes}
        return start(tmp_path / folder, backbone, features, "projection", **extra)

    begun("a", "").advance()
    later = begun("a", "2: optim.lr=0.03")
    later.advance()
    assert json.loads((tmp_path / "a/config.json").read_text())["changes"] == "2: optim.lr=0.03"
    finish(begun("b", "2: optim.lr=0.03"))
    finish(begun("a", "2: optim.lr=0.03"))
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    with pytest.raises(CheckpointError, match="holds another run: changes differ"):
        begun("a", "2: optim.lr=0.02")


def test_a_checkpoint_is_loaded_with_the_values_of_its_epoch(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = start(
        *(tmp_path, backbone, features, "projection"),
        changes="2: temperature.scale=7; 3: temperature.scale=9",
    )
    taus = []
    for _ in range(3):
        run.advance()
        taus.append(load_adapter(tmp_path / "last", backbone).tau)
    assert taus == [pytest.approx(backbone.scale), 7.0, 9.0]


def test_members_of_a_stack_change_as_they_would_alone(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    each = [
        {"changes": CHANGES},
        {"changes": "2: optim.weight_decay=3"},
        {"optim__weight_decay": 1.0, "changes": "3: loss.label_smoothing=0.2 optim.lr=0.001"},
    ]

    def runs(kind: str) -> list[Run]:
        return [
            start(tmp_path / f"{kind}{n}", backbone, features, "projection", **REWEIGHT, **extra)
            for n, extra in enumerate(each)
        ]

    alone, together = [finish(run) for run in runs("alone")], runs("together")
    stack = StackedRuns(together)
    for _ in range(3):
        stack.advance()
    for ours, theirs in zip(together, alone, strict=True):
        assert_same_rows(ours, theirs)
        assert_same_tensors(ours, theirs)


# -- the file ------------------------------------------------------------------------------------

PLACE = {"study": "runs/x", "features_key": "k", "draw_key": None, "metric": "val/t2i_mrr"}


def written(path: Path, **more: Any) -> Schedule:
    values = {"changes": "2: optim.lr=0.03; 3: loss.label_smoothing=0.1", "epochs": 3} | more
    schedule = Schedule(make_config("projection", values), PLACE | {"seed": 0}, [{"member": 4}])
    schedule.write(path)
    return schedule


def test_a_schedule_file_says_it_all(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    schedule = written(path)
    assert read_schedule(path) == schedule
    found = json.loads(path.read_text())
    assert found["epochs"] == [
        {"from_epoch": 2, "values": {"optim.lr": 0.03}},
        {"from_epoch": 3, "values": {"loss.label_smoothing": 0.1}},
    ]
    assert found["config"]["name"] == "projection"
    assert found["config"]["optim.lr"] == flatten(schedule.config)["optim.lr"]
    assert "changes" not in found["config"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "cliptune-schedule-9"}, "must be of format cliptune-schedule-1, got 'clipt"),
        ({"epoch": []}, "unknown key `epoch`. Did you mean `epochs`?"),
        ({"epochs": None}, "it lacks `epochs`"),
        ({"epochs": 3}, "`epochs` must be a list, got 3"),
        ({"epochs": [{"from_epoch": 2}]}, "it lacks `values`"),
        ({"epochs": [{"from_epoch": "2", "values": {}}]}, "must be a whole number, got '2'"),
        ({"epochs": [{"from_epoch": 2, "values": {"optim.lr": "1"}}]}, "numbers by field"),
        ({"epochs": [{"from_epoch": 1, "values": {"optim.lr": 1}}]}, "at epochs from 2 on"),
        ({"config": {"optim.lr": 1}}, "`config` must be with a `name`"),
        ({"config": {"name": "projektion"}}, "Did you mean `projection`?"),
        ({"config": {"name": "projection", "lr": 1}}, "unknown field `lr`"),
    ],
)
def test_a_file_that_is_no_schedule(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    written(path)
    found = json.loads(path.read_text()) | change
    gone = {key for key, value in change.items() if value is None}
    path.write_text(json.dumps({key: one for key, one in found.items() if key not in gone}))
    with pytest.raises(CliptuneError, match=said):
        read_schedule(path)


def test_train_replays_a_schedule(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schedule.json"
    key = json.loads((features / "manifest.json").read_text())["key"]
    values = {"batch_size": 16, "optim.schedule": "constant"}
    schedule = written(path, **values)
    Schedule(schedule.config, {**schedule.place, "features_key": key}).write(path)
    flags = ["--features", str(features), "--schedule", str(path)]
    stage_main("train", [*flags, "--out", str(tmp_path / "replay")])
    assert "warning" not in capsys.readouterr().out
    rows = read_jsonl(tmp_path / "replay/metrics.jsonl")
    assert [row["train/lr"] for row in rows] == [schedule.config.optim.lr, 0.03, 0.03]
    assert json.loads((tmp_path / "replay/run.json").read_text())["metric"] == "val/t2i_mrr"
    by_hand = ["--adapter", "projection", "--metric", "val/t2i_mrr", "--set", "epochs=3"]
    by_hand += ["batch_size=16", "optim.schedule=constant", f"changes={schedule.config.changes}"]
    out = tmp_path / "by hand"
    stage_main("train", ["--features", str(features), "--out", str(out), *by_hand])
    for kind in ("best", "last"):
        one, other = (f / kind / "adapter.safetensors" for f in (out, tmp_path / "replay"))
        assert one.read_bytes() == other.read_bytes()
    for words, said in (
        (("--adapter", "lora"), "`--adapter` must be left to the schedule, got lora"),
        (("--set", "optim.lr=1"), "`--set` must be left to the schedule, got optim.lr=1"),
        (("--draw", "x.json"), "is for retrieval: it takes no `--draw`"),
    ):
        assert said in fails(capsys, "train", *flags, "--out", str(tmp_path / "x"), *words)
    written(path, **values)
    stage_main("train", [*flags, "--out", str(tmp_path / "other")])
    assert "warning: the schedule was found on another `features_key`" in capsys.readouterr().out
