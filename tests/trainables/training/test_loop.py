"""The training loop: it learns, saves whole checkpoints, and a killed run ends with equal bytes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pair import forking
from trainables.adapters.registry import make_config
from trainables.errors import CheckpointError, ConfigError
from trainables.features.features import open_features
from trainables.models.backbone import Backbone
from trainables.models.load import load_backbone
from trainables.training import checkpoint
from trainables.training.checkpoint import load_adapter
from trainables.training.integrity import newest_intact, verify
from trainables.training.loop import Diverged, Interrupted, Run, never
from trainables.training.predict import predict
from trainables.training.sampler import Batches
from trainables.training.selection import best_of

METRIC = "val/t2i_mrr"
SETTINGS = {"epochs": 3, "batch_size": 16, "optim.lr": 1e-2, "patience": 0}


def start(
    folder: Path, backbone: Backbone, features: Path, name: str = "soft_prompt", **extra: object
) -> Run:
    config = make_config(name, SETTINGS | {k.replace("__", "."): v for k, v in extra.items()})
    train, val = (open_features(features, split, backbone) for split in ("train", "val"))
    return Run(config, backbone, train, val, folder, METRIC)


def finish(run: Run, should_stop: Callable[[], bool] = never) -> Run:
    while not run.finished:
        run.advance(should_stop)
    return run


def bytes_of(folder: Path) -> bytes:
    return (folder / "last" / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["soft_prompt", "lora", "projection"])
def test_training_lowers_the_loss_and_leaves_a_whole_run(
    name: str, tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = finish(start(tmp_path, backbone, features, name, epochs=6))
    assert run.rows[-1]["train/loss"] < run.rows[0]["train/loss"]
    assert [row["epoch"] for row in run.rows] == [1, 2, 3, 4, 5, 6]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.rows
    with (tmp_path / "metrics.csv").open() as file:
        assert [float(row[METRIC]) for row in csv.DictReader(file)] == [r[METRIC] for r in rows]
    for folder in (tmp_path / "last", tmp_path / "best"):
        verify(folder)
    best = json.loads((tmp_path / "best" / "state.json").read_text())["row"]
    assert best[METRIC] == max(row[METRIC] for row in rows)


def test_the_best_checkpoint_gives_the_metric_it_was_chosen_for(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    from trainables.metrics.retrieval import retrieval_metrics

    run = finish(start(tmp_path, backbone, features, "lora"))
    adapter = load_adapter(tmp_path / "best", backbone)
    val = open_features(features, "val", backbone)
    metrics = retrieval_metrics(predict(adapter, val), val.groups, val.groups[val.caption_rows])
    assert run.best is not None
    assert metrics["t2i_mrr"] == run.best[METRIC]


@pytest.mark.parametrize("name", ["soft_prompt", "lora"])
def test_a_run_cut_at_any_step_ends_with_the_same_bytes(
    name: str, tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    extra = {"temperature__policy": "adaptive", "loss__hard_negatives": "mined"}
    whole = finish(start(tmp_path / "whole", backbone, features, name, **extra))
    for cut in range(1, whole.total):
        folder = tmp_path / f"cut{cut}"
        run = start(folder, backbone, features, name, **extra)
        with pytest.raises(Interrupted):
            finish(run, lambda run=run, cut=cut: run.step >= cut)  # type: ignore[misc]
        resumed = start(folder, backbone, features, name, **extra)
        assert resumed.step == run.step
        finish(resumed)
        assert bytes_of(folder) == bytes_of(tmp_path / "whole")
        assert resumed.rows[-1][METRIC] == whole.rows[-1][METRIC]
        assert resumed.rows[-1]["train/loss"] == whole.rows[-1]["train/loss"]
        if cut > 6:
            break


def victim(folder: Path, clip: Path, features: Path, writes: int) -> None:
    """A run that saves whenever it can, in a process that is killed before so many writes."""
    left = [writes]

    def dying(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            function(*args)

        return call

    torch.set_num_threads(1)
    checkpoint.write_bytes = dying(checkpoint.write_bytes)
    checkpoint.write_json = dying(checkpoint.write_json)
    run = start(folder, load_backbone(str(clip)), features)
    run.checkpoint_seconds = 0
    finish(run)


def test_sigkill_between_any_two_writes_changes_nothing(
    tmp_path: Path, clip: Path, features: Path
) -> None:
    def go(folder: Path, writes: int) -> int | None:
        process = forking().Process(target=victim, args=(folder, clip, features, writes))
        process.start()
        process.join()
        return process.exitcode

    assert go(tmp_path / "whole", -1) == 0
    kills = 0
    for writes in (2, 9, 23, 38):  # in the first save, in the swap of a later one, near the end
        folder = tmp_path / f"kill{writes}"
        assert go(folder, writes) == -signal.SIGKILL
        kills += 1
        assert go(folder, -1) == 0
        assert bytes_of(folder) == bytes_of(tmp_path / "whole")
    assert kills == 4


def test_a_save_killed_between_its_renames_leaves_the_old_one_until_the_next_is_whole(
    tmp_path: Path, backbone: Backbone, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, backbone, features)
    run.advance()
    last = tmp_path / "last"
    last.rename(tmp_path / "last.old")  # what a kill between the two renames leaves
    resumed = start(tmp_path, backbone, features)
    assert resumed.epoch == 1

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt(f"{self} to {target}")

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        resumed._save_last()
    monkeypatch.undo()
    assert start(tmp_path, backbone, features).epoch == 1


def test_metrics_lost_by_a_kill_after_the_last_checkpoint_are_written_again(
    tmp_path: Path, backbone: Backbone, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, backbone, features, epochs=2)
    run.advance()
    with monkeypatch.context() as killed:
        killed.setattr("trainables.training.loop.write_metrics", lambda *_: None)
        run.advance()
    resumed = start(tmp_path, backbone, features, epochs=2)
    assert resumed.finished
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == run.rows


def test_a_run_of_one_step_an_epoch_can_be_stopped(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = start(tmp_path, backbone, features, batch_size=48)
    assert run.batches.steps_per_epoch == 1
    with pytest.raises(Interrupted):
        finish(run, lambda: run.step >= 2)
    assert start(tmp_path, backbone, features, batch_size=48).step == 2


def test_a_metric_that_is_not_measured_is_refused(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    train, val = (open_features(features, split, backbone) for split in ("train", "val"))
    with pytest.raises(ConfigError, match="unknown metric `val/t2i_r2`"):
        Run(make_config("soft_prompt"), backbone, train, val, tmp_path, "val/t2i_r2")


def test_same_seed_same_bytes_other_seed_other_bytes(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    for number, seed in enumerate((0, 0, 1)):
        finish(start(tmp_path / str(number), backbone, features, seed=seed))
    first, second, third = (bytes_of(tmp_path / str(n)) for n in range(3))
    assert first == second
    assert first != third


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    whole = finish(start(tmp_path / "whole", backbone, features))
    run = start(tmp_path / "hurt", backbone, features)
    run.advance()
    run.advance()
    path = tmp_path / "hurt" / "last" / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    resumed = start(tmp_path / "hurt", backbone, features)
    assert resumed.epoch == 1
    assert "altered" in resumed.warnings[0]
    finish(resumed)
    assert bytes_of(tmp_path / "hurt") == bytes_of(tmp_path / "whole")
    assert resumed.rows[-1][METRIC] == whole.rows[-1][METRIC]


def test_every_flipped_byte_and_every_cut_is_detected(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    finish(start(tmp_path, backbone, features, epochs=1))
    folder = tmp_path / "last"
    for path in sorted(folder.iterdir()):
        intact = path.read_bytes()
        for part in range(16):
            at = len(intact) * part // 16
            flipped = bytes([*intact[:at], intact[at] ^ 0x10, *intact[at + 1 :]])
            for damaged in (flipped, intact[:at]):
                path.write_bytes(damaged)
                with pytest.raises(CheckpointError):
                    verify(folder)
        path.write_bytes(intact)
    verify(folder)
    assert newest_intact(folder) == (folder, [])


def test_a_run_with_no_intact_checkpoint_begins_again_from_its_configuration(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    finish(start(tmp_path, backbone, features, epochs=2))
    expected = trained(tmp_path)
    shutil.rmtree(tmp_path / "last.old")
    (tmp_path / "last" / "manifest.json").write_text("{}")
    run = start(tmp_path, backbone, features, epochs=2)
    assert run.epoch == 0
    assert "not a complete checkpoint" in run.warnings[0]
    assert run.warnings[-1] == "It is trained again from its configuration."
    finish(run)
    assert trained(tmp_path) == expected
    (tmp_path / "last" / "state.json").write_text("{")
    shutil.rmtree(tmp_path / "last.old")
    with pytest.raises(CheckpointError, match=r"optim\.lr"):  # nor is another run's folder taken
        start(tmp_path, backbone, features, epochs=2, optim__lr=1e-3)


def trained(folder: Path) -> list[bytes]:
    return [(folder / kind / "adapter.safetensors").read_bytes() for kind in ("last", "best")]


def test_another_config_in_the_same_folder_is_refused(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    start(tmp_path, backbone, features).advance()
    with pytest.raises(CheckpointError, match=r"optim\.lr"):
        start(tmp_path, backbone, features, optim__lr=1e-3)


def test_an_adapter_of_another_backbone_is_refused(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    from tests.tiny import tiny_clip

    finish(start(tmp_path / "run", backbone, features, epochs=1))
    other = load_backbone(str(tiny_clip(tmp_path / "other", seed=7)))
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_adapter(tmp_path / "run" / "best", other)


def test_patience_ends_a_run_early(tmp_path: Path, backbone: Backbone, features: Path) -> None:
    run = finish(start(tmp_path, backbone, features, epochs=30, patience=2, optim__lr=1e-9))
    assert run.epoch == 3  # the first epoch was best, two more were not better


def test_a_loss_that_is_not_finite_fails_the_run(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = start(tmp_path, backbone, features)
    with torch.no_grad():
        next(iter(run.trained.values())).fill_(float("nan"))
    with pytest.raises(Diverged, match="step 0"):
        run.advance()


def test_a_finished_run_gives_its_last_row_again_and_trains_no_more(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = finish(start(tmp_path, backbone, features))
    again = start(tmp_path, backbone, features)
    assert again.finished
    assert again.advance() == run.rows[-1]
    assert bytes_of(tmp_path) == bytes_of(tmp_path)
    assert again.step == run.total


def test_an_epoch_shows_each_image_once(backbone: Backbone, features: Path) -> None:
    config = make_config("soft_prompt", {"batch_size": 16, "loss.captions_per_image": 2})
    data = open_features(features, "train")
    batches = Batches(data, config)
    seen = [batches(step, 6).image_groups for step in range(3)]
    assert torch.cat(seen).sort().values.tolist() == list(range(48))
    batch = batches(1, 6)
    assert len(batch.tokens) == 32
    assert torch.equal(batch.caption_groups, batch.image_groups.repeat_interleave(2))
    later = Batches(data, config)(1, 6)  # nothing before it was drawn
    assert torch.equal(later.tokens.ids, batch.tokens.ids)
    assert not torch.equal(batches(4, 6).image_groups, batch.image_groups)


def test_the_parts_of_two_workers_are_the_batch_of_one(backbone: Backbone, features: Path) -> None:
    config = make_config("soft_prompt", {"batch_size": 16})
    data = open_features(features, "train", backbone)
    whole = Batches(data, config, 0, True)(5, 9)
    parts = [Batches(data, config, 0, True, rank, 2)(5, 9) for rank in range(2)]
    assert torch.equal(torch.cat([p.image_groups for p in parts]), whole.image_groups)
    assert torch.equal(torch.cat([p.tokens.ids for p in parts]), whole.tokens.ids)
    assert whole.hidden is not None
    assert whole.text_embeds is not None
    hidden = torch.cat([p.hidden for p in parts if p.hidden is not None])
    torch.testing.assert_close(hidden, whole.hidden)
    texts = torch.cat([p.text_embeds for p in parts if p.text_embeds is not None])
    assert torch.equal(texts, whole.text_embeds)


def test_mined_batches_hold_near_neighbours(backbone: Backbone, features: Path) -> None:
    values = {"batch_size": 8, "loss.hard_negatives": "mined", "loss.mined_pool": 3}
    data = open_features(features, "train")
    batches = Batches(data, make_config("soft_prompt", values))
    assert batches.neighbours is not None
    batch = batches(0, 12)
    anchors, partners = batch.image_groups[:4], batch.image_groups[4:]
    for anchor, partner in zip(anchors.tolist(), partners.tolist(), strict=True):
        assert partner in batches.neighbours[anchor].tolist()
    again = Batches(data, make_config("soft_prompt", values | {"seed": 1}))
    assert again.neighbours is batches.neighbours  # found once for all trials of a process


def test_a_full_disk_names_the_path_and_keeps_the_old_checkpoint(
    tmp_path: Path, backbone: Backbone, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainables.errors import DataError

    run = start(tmp_path, backbone, features)
    run.advance()
    before = bytes_of(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        run.advance()
    monkeypatch.undo()
    assert bytes_of(tmp_path) == before
    resumed = start(tmp_path, backbone, features)
    assert resumed.epoch == 1


def test_of_equal_accuracies_the_likelier_epoch_is_best() -> None:
    rows = [
        {"epoch": 1, "val/accuracy": 0.5, "val/log_likelihood": -1.0},
        {"epoch": 2, "val/accuracy": 0.6, "val/log_likelihood": -2.0},
        {"epoch": 3, "val/accuracy": 0.6, "val/log_likelihood": -1.5},
        {"epoch": 4, "val/accuracy": 0.6, "val/log_likelihood": -1.5},
    ]
    assert best_of(rows, "val/accuracy") is rows[2]
    assert best_of(rows, "val/log_likelihood") is rows[0]
    recalls = [{"epoch": n, "val/t2i_r1": 0.5} for n in (1, 2)]
    assert best_of(recalls, "val/t2i_r1") is recalls[0]
    assert best_of([], "val/t2i_r1") is None
