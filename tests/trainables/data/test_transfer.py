"""A step never waits for the device: what it found is asked one step late."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.contract import (
    ALL,
    CLASSIFIERS,
    LEARNING,
    SPEAKERS,
    examples,
    language_model_folder,
)
from tests.contract import written as spoken
from tests.tape import NoWait
from trainables.adapters.registry import make_config
from trainables.data.batches import Batch
from trainables.data.transfer import Numbers
from trainables.files import read_json
from trainables.models.backbone import Backbone
from trainables.training.integrity import newest_intact
from trainables.training.loop import Diverged, Interrupted, Run
from trainables.training.selection import METRICS
from trainables.trials.stacked import StackedRuns


@pytest.fixture
def start(backbone: Backbone, tmp_path: Path) -> Any:
    def run(variant: str, number: int = 0, **values: Any) -> Run:
        name, settings = ALL[variant]
        values = {"batch_size": 8, "epochs": 2, "precision": "fp32", **settings, **values}
        data = spoken(backbone)
        if variant in CLASSIFIERS:
            values["task"], data = "classification", examples(backbone)
        elif variant in SPEAKERS:
            values["adapter.lm"] = language_model_folder().name
        config = make_config(name, values)
        metric = METRICS[config.task][0]
        return Run(config, backbone, data, data, tmp_path / f"{variant} {number}", metric)

    return run


@pytest.mark.parametrize("variant", LEARNING)
def test_no_step_waits(variant: str, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(variant)
    run.begin_epoch()
    batch = run.next_batch()
    monkeypatch.setattr(run, "next_batch", lambda: batch)
    run.count(run._train_step())  # what is made of the words on the CPU is kept from here on
    with NoWait():
        numbers = run._train_step()
    run.count(numbers)
    assert run.sums["loss"] != 0


def poison(run: Run, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step `at` sees images that are no numbers."""
    plain = run.next_batch

    def next_batch() -> Batch:
        batch = plain()
        bad = torch.full_like(batch.image_embeds, torch.nan)
        return replace(batch, image_embeds=bad) if run.step == at else batch

    monkeypatch.setattr(run, "next_batch", next_batch)


def saved(run: Run) -> tuple[int, dict[str, torch.Tensor]]:
    last, _ = newest_intact(run.folder / "last")
    assert last is not None
    return read_json(last / "state.json")["step"], load_file(last / "adapter.safetensors")


def test_a_step_is_looked_at_when_the_next_one_was_started(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = start("projection"), []
    step, row = Run._train_step, Numbers.row
    monkeypatch.setattr(Run, "_train_step", lambda self: told.append("start") or step(self))
    monkeypatch.setattr(Numbers, "row", lambda self, n: told.append("look") or row(self, n))
    run.advance()
    assert told == ["start", "start", "look", "look"]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_what_diverged_is_never_saved(at: int, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start("projection", batch_size=4)
    run.checkpoint_seconds = 0
    poison(run, at, monkeypatch)
    with pytest.raises(Diverged, match=f"^the loss became nan at step {at}[.]$"):
        run.advance()
    if at:
        step, tensors = saved(run)
        assert step == at
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (run.folder / "best").exists()


def test_what_diverged_is_not_saved_where_it_is_stopped(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start("projection", batch_size=4)
    poison(run, 1, monkeypatch)
    with pytest.raises(Diverged, match="at step 1"):
        run.advance(lambda: run.step == 2)
    assert newest_intact(run.folder / "last")[0] is None


def test_a_stack_that_is_stopped_saves_all_but_what_diverged(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [start("projection", n, batch_size=4) for n in range(3)]
    stack = StackedRuns(runs)
    stops = iter([False, False, True])
    step = stack._step

    def poisoned() -> Numbers:
        numbers = step()
        if runs[0].step == 1:
            numbers.values[1] = torch.nan
        return numbers

    monkeypatch.setattr(stack, "_step", poisoned)
    with pytest.raises(Interrupted):
        stack.advance(lambda: next(stops))
    assert stack.runs == [runs[0], runs[2]]
    assert [newest_intact(run.folder / "last")[0] is not None for run in runs] == [
        True,
        False,
        True,
    ]
    assert saved(runs[2])[0] == 2
