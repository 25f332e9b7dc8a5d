"""Steps that are recorded and replayed against the same steps as they are."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.contract import TRAINED
from tests.tape import Recorder
from tests.trainables.trials.test_stacked import (
    OBJECTIVES,
    Make,
    assert_same_rows,
    assert_same_tensors,
    bench,
    make,
)
from trainables.models import text_plan
from trainables.trials import cuda_graphs
from trainables.trials.stacked import StackedRuns

__all__ = ["bench", "make"]


@pytest.fixture(autouse=True)
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes as on a GPU."""
    monkeypatch.setattr(text_plan, "few_shapes", lambda _: True)


def check(variant: str, make: Make, **values: object) -> None:
    alone = make("alone", variant, epochs=6, **values)
    for run in alone:
        while not run.finished:
            run.advance()
    together = make("together", variant, epochs=6, **values)
    recorder = Recorder()
    stack = StackedRuns(together, lambda device: recorder)
    while stack.runs:
        stack.advance()
    assert recorder.replayed > 2 * recorder.recorded > 0  # most steps are replays
    for ours, theirs in zip(together, alone, strict=True):
        assert_same_rows(ours, theirs)
        assert_same_tensors(ours, theirs)


@pytest.mark.parametrize("variant", TRAINED)
def test_replayed_steps_equal_single_runs(variant: str, make: Make) -> None:
    check(variant, make)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_objective_decides_anything_in_python(objective: str, make: Make) -> None:
    check("projection", make, **OBJECTIVES[objective])


def test_dropout_draws_anew_in_each_replay(make: Make) -> None:
    check("lora", make, **{"adapter.dropout": 0.3})


def test_what_was_recorded_ends_with_its_members(make: Make) -> None:
    recorder = Recorder()
    together = make("together", epochs=6)
    stack = StackedRuns(together, lambda device: recorder)
    stack.advance()
    first = recorder.recorded
    assert first > 0
    stack.leave([together[1]])  # the stacks are others now
    stack.advance()
    assert recorder.recorded > first


def test_a_step_that_cannot_be_recorded_runs_as_it_is(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(work: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    alone, together = make("alone"), make("together")
    stack = StackedRuns(together, lambda device: refuse)  # type: ignore[arg-type,return-value]
    with caplog.at_level(logging.WARNING):
        stack.advance()
    assert [record.message for record in caplog.records] == [
        "steps are not recorded: operation not permitted when stream is capturing"
    ]
    for run, other in zip(together, alone, strict=True):
        other.advance()
        assert_same_tensors(run, other)
    stack.leave([together[1]])
    assert stack.graphs.record is None  # it is not tried again


def test_there_are_at_most_so_many_recordings(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST", 0)
    recorder = Recorder()
    stack = StackedRuns(make("together"), lambda device: recorder)
    stack.advance()
    assert recorder.recorded == 0


def test_a_cpu_records_nothing(tmp_path: Path) -> None:
    assert cuda_graphs.recorder(torch.device("cpu")) is None
