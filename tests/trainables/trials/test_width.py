"""How many runs to train together: whatever goes wrong while it is measured, it is asked once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.trials.test_stacked import METRIC, Make, bench, make
from trainables.distributed import ALONE
from trainables.errors import ConfigError
from trainables.training.loop import Run, never
from trainables.trials import width as module
from trainables.trials.crew import Crew
from trainables.trials.jobs import Job
from trainables.trials.stacked import StackedRuns
from trainables.trials.width import Widths, measure_width
from trainables.trials.workbench import TrialSettings, Workbench

__all__ = ["bench", "make"]
VALUES = {"name": "projection", "epochs": 1, "batch_size": 16}
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("attn_bias: wrong shape (batch dimension)"),
    torch.linalg.LinAlgError("the input is not positive-definite"),
    MemoryError("no memory"),
    ZeroDivisionError("division by zero"),
]


@pytest.fixture
def own(features: Path, tmp_path: Path) -> Workbench:
    return Workbench(TrialSettings(features, tmp_path, METRIC, threads=1, most_fused=4))


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of the stacks that are made."""
    made: list[int] = []
    real = StackedRuns.__init__

    def init(self: StackedRuns, runs: Any, *args: Any) -> None:
        made.append(len(runs))
        real(self, runs, *args)

    monkeypatch.setattr(StackedRuns, "__init__", init)
    return made


def broken(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: StackedRuns) -> None:
        raise error

    monkeypatch.setattr(StackedRuns, "_step", step)


def trained(own: Workbench, number: int, **values: Any) -> dict[str, Any]:
    """The only result of a trial of one epoch."""
    return Crew(own, Job(number, VALUES | values, 0), ALONE).advance(never)[number]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_means_the_smaller_width_and_no_trial_is_lost(
    error: Exception, own: Workbench, tries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(error, monkeypatch)
    assert [trained(own, number)["state"] for number in (1, 2)] == ["finished"] * 2
    assert tries == [2]  # asked once
    why = f"2 failed with {type(error).__name__}: {error}"
    assert own.settings.widths.read() == {"projection": {"width": 1, "why": why}}
    assert sorted(path.name for path in own.settings.folder.iterdir()) == [
        *("fused.json", "fused.lock", "trials")
    ]


def test_an_error_of_one_run_alone_is_a_width_of_1(
    own: Workbench, tries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = Run._train_step, [1]

    def step(self: Run) -> Any:
        if left[0]:
            left[0] = 0
            raise RuntimeError("no kernel")
        return real(self)

    monkeypatch.setattr(Run, "_train_step", step)
    assert trained(own, 1)["state"] == "finished"
    assert own.settings.widths.read()["projection"] == {
        **{"width": 1, "why": "1 failed with RuntimeError: no kernel"}
    }
    assert not tries


def test_a_device_that_is_dead_ends_the_worker_and_is_not_asked_again(
    own: Workbench, tries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(torch.AcceleratorError("CUDA error: an illegal memory access"), monkeypatch)
    with pytest.raises(torch.AcceleratorError):
        trained(own, 1)
    found = own.settings.widths.read()["projection"]
    assert found["width"] == 1
    assert found["why"].startswith("2 failed with AcceleratorError")
    assert trained(own, 1)["state"] == "finished"  # as the next worker does
    assert tries == [2]


def test_a_worker_that_is_killed_meanwhile_has_written_what_it_knew(
    own: Workbench, tries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trained(own, 1)
    why = "the process ended while 2 were measured."
    assert own.settings.widths.read()["projection"] == {"width": 1, "why": why}
    assert trained(own, 1)["state"] == "finished"
    assert tries == [2]


def test_a_wrong_setting_is_the_trials_own_and_leaves_the_question_open(
    own: Workbench, tries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigError("`x` must be at least 1, got 0.")

    with monkeypatch.context() as patched:
        patched.setattr(Workbench, "run", refuse)
        assert trained(own, 1)["state"] == "failed"
    assert not own.settings.widths.read()
    assert trained(own, 2)["state"] == "finished"
    assert own.settings.widths.read()["projection"]["width"] >= 1
    assert tries


def test_an_error_late_means_the_best_so_far(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def step(self: StackedRuns) -> Any:
        if len(self.runs) == 8:
            raise torch.OutOfMemoryError("full")
        now[0] += 1.0
        return Numbers()

    class Numbers:
        def row(self) -> None: ...

    def single(self: Run) -> Any:
        now[0] += 1.0
        return Numbers()

    monkeypatch.setattr(StackedRuns, "_step", step)
    monkeypatch.setattr(Run, "_train_step", single)
    run = make("any", count=1)[0]
    notes: list[tuple[int, str]] = []
    measure_width(lambda n: [run] * n, 16, lambda *noted: notes.append(noted), clock=lambda: now[0])
    assert [best for best, _ in notes] == [1, 1, 2, 4, 4]
    assert notes[-1][1] == "8 failed with OutOfMemoryError: full"


def test_what_trains_alone_is_not_measured(own: Workbench, tries: list[int]) -> None:
    assert trained(own, 1, name="zero_shot", epochs=1)["state"] == "finished"
    assert own.settings.widths.read()["zero_shot"]["width"] == 1
    assert not tries


def test_two_workers_may_ask_and_note_at_once(tmp_path: Path) -> None:
    """None overwrites what another has written, and one of those who ask measures."""
    names, asked = [f"adapter {n}" for n in range(8)], []

    def work(start: int) -> None:
        widths = Widths(tmp_path)
        for name in (*names[start:], *names[:start]):
            if widths.ask(name):
                asked.append(name)
                widths.note(name, 4, "measured")
                widths.note_full(name, 2, "full")

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == names
    entry = {"width": 4, "why": "measured", "fits": 2, "full": "full"}
    assert Widths(tmp_path).read() == dict.fromkeys(names, entry)


def test_memory_is_given_back_when_a_try_failed(
    own: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(module, "give_back", lambda: calls.append(1))
    broken(torch.OutOfMemoryError("full"), monkeypatch)
    trained(own, 1)
    assert calls == [1]
