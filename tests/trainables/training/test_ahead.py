"""Batches that another thread makes ahead: the same ones, with their plans; errors come back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from tests.trainables.data.test_transfer import start  # noqa: F401  # a fixture
from trainables.errors import DataError
from trainables.models import text_plan
from trainables.training.ahead import Ahead
from trainables.training.checkpoint import trained_tensors
from trainables.training.loop import Run
from trainables.trials.stacked import StackedRuns

AHEAD = "batches_0"  # the thread's name


def trained(run: Run, ahead: bool) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    run.ahead.threaded = ahead
    while not run.finished:
        run.advance()
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in run.rows]
    return rows, trained_tensors(run.adapter)


@pytest.mark.parametrize(
    "variant", ["projection", "soft_prompt", "lora both", "coop", "prefix_captioner paper"]
)
def test_a_batch_made_ahead_is_the_same(variant: str, start: Any) -> None:  # noqa: F811
    one = trained(start(variant, 0, batch_size=4), True)
    other = trained(start(variant, 1, batch_size=4), False)
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], tensor) for name, tensor in other[1].items())


def test_runs_trained_together_have_theirs_ahead_too(start: Any) -> None:  # noqa: F811
    found = []
    for ahead in (True, False):
        runs = [start("soft_prompt", n + 2 * ahead, batch_size=4) for n in range(2)]
        runs[0].ahead.threaded = ahead
        stack = StackedRuns(runs)
        for _ in range(2):
            stack.advance()
        found.append([trained_tensors(run.adapter) for run in runs])
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_plans_are_made_ahead_but_an_epochs_first(
    start: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    makers: list[str] = []
    make = text_plan.Plan.of

    def noted(*args: Any) -> text_plan.Plan:
        if torch.is_grad_enabled():
            makers.append(threading.current_thread().name)
        return make(*args)

    monkeypatch.setattr(text_plan.Plan, "of", noted)
    run = start("soft_prompt", batch_size=4)
    steps = run.batches.steps_per_epoch
    assert steps > 3
    trained(run, True)
    # The first epoch's first plan says what the others are to be, when the second batch is begun.
    here = threading.current_thread().name
    assert Counter(makers) == {here: 2 + 1, AHEAD: 2 * steps - 3}


def test_the_thread_works_on_this_ones_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows each worker of a node the cards of all, and a thread's own would be the first."""
    entered: list[tuple[str, int]] = []

    @contextmanager
    def device(card: int) -> Iterator[None]:
        entered.append((threading.current_thread().name, card))
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", device)
    batch: Any = mock.Mock()
    batch.to.return_value.tokens.plans = {}
    backbone: Any = mock.Mock(device=torch.device("cuda"))
    ahead = Ahead(lambda _: batch, backbone, threaded=True)
    for step in range(2):
        ahead(step, 2)
    assert entered == [(threading.current_thread().name, 1), (AHEAD, 1)]


def test_what_fails_ahead_fails_in_its_turn(start: Any) -> None:  # noqa: F811
    run = start("projection", batch_size=4)
    make = run.ahead.make

    def bad(step: int) -> Any:
        if step == 2:
            raise DataError("`x` is damaged.")
        return make(step)

    run.ahead.make, run.ahead.threaded = bad, True
    with pytest.raises(DataError, match="damaged"):
        run.advance()
    assert run.step == 2
