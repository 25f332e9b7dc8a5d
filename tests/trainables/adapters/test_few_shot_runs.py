"""The runs of few-shot adapters: SGD with CoOp's schedule, and what survives a kill."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import COLOURS
from trainables.adapters.registry import make_config
from trainables.errors import DataError
from trainables.features.classes import Classes
from trainables.features.features import open_features
from trainables.models.backbone import Backbone
from trainables.training.loop import Interrupted, Run, never
from trainables.trials.stacked import StackedRuns


def start(folder: Path, backbone: Backbone, features: Path, name: str, **values: Any) -> Run:
    """Six classes, 4 images each, 3 epochs of 3 steps."""
    classes, splits = Classes(COLOURS), {}
    for part, count in (("train", 24), ("val", 12)):
        draw = {f"{part}-{n:03}": n % 6 for n in range(count)}
        splits[part] = open_features(features, part, backbone).take(draw, classes)
    settings = {"batch_size": 8, "epochs": 3, "optim.lr": 0.02, **values}
    config = make_config(name, {"task": "classification", **settings})
    return Run(config, backbone, splits["train"], splits["val"], folder, "val/log_likelihood")


def finish(run: Run, should_stop: Callable[[], bool] = never) -> Run:
    while not run.finished:
        run.advance(should_stop)
    return run


def left(folder: Path) -> list[bytes]:
    files = ("adapter.safetensors", "optimizer.safetensors")
    return [(folder / "last" / file).read_bytes() for file in files]


@pytest.mark.parametrize("name", ["coop", "mip", "maple", "promptsrc", "clip_adapter"])
def test_sgd_resumed_anywhere_ends_with_the_same_bytes(
    name: str, tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    whole = finish(start(tmp_path / "whole", backbone, features, name))
    assert isinstance(whole.optimizer, torch.optim.SGD)
    for cut in (1, 3, 5, 8):
        folder = tmp_path / f"cut{cut}"
        run = start(folder, backbone, features, name)
        with pytest.raises(Interrupted):
            finish(run, lambda run=run, cut=cut: run.step >= cut)  # type: ignore[misc]
        resumed = start(folder, backbone, features, name)
        assert resumed.step == cut
        finish(resumed)
        assert left(folder) == left(tmp_path / "whole")
        assert [row["val/log_likelihood"] for row in resumed.rows] == [
            row["val/log_likelihood"] for row in whole.rows
        ]


@pytest.mark.parametrize("name", ["promptsrc", "tip_adapter"])
def test_an_epoch_that_was_cut_off_at_its_end_is_ended_once(
    name: str, tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    values = {"adapter.tune": True} if name == "tip_adapter" else {}
    finish(start(tmp_path / "whole", backbone, features, name, **values))
    run = start(tmp_path / "cut", backbone, features, name, **values)
    run.advance()
    run.checkpoint_seconds = -1  # a checkpoint after every step
    run.adapter.end_epoch = lambda epoch, val: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        run.advance()
    resumed = start(tmp_path / "cut", backbone, features, name, **values)
    assert (resumed.step, resumed.epoch) == (6, 1)
    finish(resumed)
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_the_learning_rate_of_coop(tmp_path: Path, backbone: Backbone, features: Path) -> None:
    run = start(tmp_path, backbone, features, "coop", epochs=5)
    expected = [1e-5]
    expected += [0.5 * 0.02 * (1 + math.cos(math.pi * (e - 1) / 5)) for e in range(1, 5)]
    assert [run.lr(step) for step in range(15)] == pytest.approx(
        [rate for rate in expected for _ in range(3)]
    )
    assert expected[1] == 0.02
    assert expected[-1] > 0
    run.advance()
    assert run.rows[0]["train/lr"] == 1e-5


def test_steps_of_sgd_are_those_of_the_formula(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = start(tmp_path, backbone, features, "clip_adapter")
    weights = [p.detach().clone() for p in run.trained.values()]
    velocities: list[Tensor] = []
    for step in range(5):
        run._train_step()
        run.step += 1
        grads = [p.grad for p in run.trained.values()]
        decayed = [g + 5e-4 * w for g, w in zip(grads, weights, strict=True)]  # type: ignore[operator]
        pairs = zip(velocities or [torch.zeros_like(w) for w in weights], decayed, strict=True)
        velocities = [0.9 * v + g for v, g in pairs]
        rate = run.lr(step)
        weights = [w - rate * v for w, v in zip(weights, velocities, strict=True)]
        for ours, reference in zip(run.trained.values(), weights, strict=True):
            torch.testing.assert_close(ours.detach(), reference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["maple", "promptsrc"])
def test_prompts_of_the_image_tower_need_pixels(
    name: str, tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = start(tmp_path, backbone, features, name)
    run.batches.data = dataclasses.replace(run.batches.data, pixels=None)
    with pytest.raises(DataError, match="need pixels"):
        run.advance()


@pytest.mark.parametrize("name", ["coop", "cocoop", "maple", "promptsrc", "linear_probe"])
def test_fused_runs_are_what_each_is_alone(
    name: str, tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    settings = {"optim.kind": "adamw", "epochs": 2, "precision": "fp32"}
    settings |= {"temperature.scale": 10.0}

    def make(folder: str) -> list[Run]:
        rates = [settings | {"optim.lr": lr} for lr in (1e-3, 5e-3)]
        return [
            start(tmp_path / f"{folder}{n}", backbone, features, name, **values)
            for n, values in enumerate(rates)
        ]

    alone, fused = make("alone"), make("fused")
    for run in alone:
        finish(run)
    stack = StackedRuns(fused)
    while stack.runs:
        stack.advance()
    for one, other in zip(alone, fused, strict=True):
        for key in ("train/loss", "val/log_likelihood"):
            found = [[row[key] for row in run.rows] for run in (one, other)]
            assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("name", ["maple", "promptsrc"])
def test_steps_in_bf16_are_near_those_in_fp32(
    name: str, tmp_path: Path, backbone: Backbone, features: Path, bf16_cpu: None
) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        run = start(tmp_path / precision, backbone, features, name, precision=precision)
        losses.append(run._train_step().row()["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
