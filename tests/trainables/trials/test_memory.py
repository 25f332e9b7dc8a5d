"""Too little memory: smaller stacks, then alone, then once more when nothing else runs."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import open_study
from pipelines.tune.workers.division import Workers
from tests.trainables.trials.test_stacked import (
    METRIC,
    Make,
    assert_same_rows,
    assert_same_tensors,
    bench,
    make,
)
from trainables.distributed import ALONE
from trainables.training.loop import Run, never
from trainables.trials import crew as crews
from trainables.trials import memory, workbench
from trainables.trials.crew import Crew
from trainables.trials.jobs import Job
from trainables.trials.memory import claim, is_out_of_memory, shortage
from trainables.trials.runners import InProcess
from trainables.trials.stacked import StackedRuns
from trainables.trials.width import Widths
from trainables.trials.workbench import TrialSettings, Workbench

__all__ = ["bench", "make"]

SEARCH = Search(("projection",), METRIC, trials=4, epochs=2, seed=3, fixed={"batch_size": 16})


def full() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory.\n Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (full(), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("Cannot allocate memory"), False),
    ],
)
def test_too_little_memory_has_several_names(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_the_reason_says_what_was_asked_and_what_there_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shortage(full(), 1.0) == (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 80 * 2**30))
    assert shortage(full(), 0.25).endswith(
        "Tried to allocate 2.00 GiB. This worker may use 20.0 GiB of the card; 1.0 of 80.0 GiB "
        "are free."
    )


def test_a_part_of_a_card_is_a_part_of_its_memory(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(workbench, "claim", shares.append)
    Workbench(TrialSettings(features, tmp_path, METRIC, threads=0, share=0.25))
    assert shares == [0.25]
    assert [Workers(1, 1, 1.0, gpus, 1).share for gpus in (0.25, 1, 2, 0)] == [0.25, 1, 1, 1]
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory.torch.cuda, "set_per_process_memory_fraction", shares.append)
    claim(0.5)
    claim(1.0)  # what has a card to itself needs no limit
    assert shares == [0.25, 0.5]


def stacks_of(most: int, after: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From step `after` on, larger ones run out of memory when they have updated one of their runs.
    How many tried, and failed."""
    failed: list[int] = []
    real = StackedRuns._step

    def step(self: StackedRuns) -> Any:
        if len(self.runs) <= most or self.runs[0].step < after:
            return real(self)
        failed.append(len(self.runs))
        with torch.no_grad():
            for parameter in self.runs[0].trained.values():
                parameter.add_(1)
        raise full()

    monkeypatch.setattr(StackedRuns, "_step", step)
    return failed


@pytest.mark.parametrize("seconds", [30.0, 0.0], ids=["saved each epoch", "saved each step"])
@pytest.mark.parametrize("after", [0, 4])  # the first step, and one of the second epoch
@pytest.mark.parametrize(("most", "tries"), [(2, [4]), (1, [4, 2])])
def test_a_stack_that_is_too_large_is_halved_and_all_end_as_if_alone(
    most: int,
    tries: list[int],
    after: int,
    seconds: float,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Workbench(TrialSettings(features, tmp_path, METRIC, threads=1))
    shared = {"name": "projection", "epochs": 2, "batch_size": 16}
    jobs = [
        {"number": n + 1, "values": shared | {"optim.lr": lr}, "reported": 0}
        for n, lr in enumerate((1e-4, 2e-4, 5e-4, 1e-3))
    ]
    alone = [
        own.run(workbench.config_of(job["values"]), tmp_path / f"{n}") for n, job in enumerate(jobs)
    ]
    for run in alone:
        while not run.finished:
            run.advance()
    failed = stacks_of(most, after, monkeypatch)
    crew = Crew(own, Job(**jobs[0], siblings=tuple(jobs[1:])), ALONE)  # type: ignore[arg-type]
    for run in crew.runs.values():
        run.checkpoint_seconds = seconds
    told: dict[int, list[int]] = {1: [], 2: [], 3: [], 4: []}
    while crew.runs:
        for number, result in crew.advance(never).items():
            told[number].append(result["epoch"])
            assert result["state"] == ("finished" if result["epoch"] == 2 else "running")
    assert told == {n: [1, 2] for n in (1, 2, 3, 4)}
    assert failed == tries
    assert Widths(tmp_path).of("projection", asked=8) == most
    for number, theirs in enumerate(alone, 1):
        resumed = own.resume(number, jobs[number - 1]["values"])  # as it is on disk
        assert_same_rows(resumed, theirs)
        assert_same_tensors(resumed, theirs)


def test_memory_that_lacks_on_val_repeats_nothing_that_was_saved(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One member has ended its epoch, the other one not."""
    real, left = Run._measure, [1]

    def measure(self: Run, *similarity: Any) -> dict[str, float]:
        if self.folder.name == "0072" and left[0]:
            left[0] = 0
            raise full()
        return real(self, *similarity)

    monkeypatch.setattr(Run, "_measure", measure)
    values = {"name": "projection", "epochs": 1, "batch_size": 16}
    sibling = {"number": 72, "values": values, "reported": 0}
    crew = Crew(bench, Job(71, values, 0, (sibling,)), ALONE)
    saved = bench.settings.trial_folder(71) / "best" / "manifest.json"
    stamps = []
    real_build = crew._build

    def build(*args: Any) -> None:
        stamps.append(saved.stat().st_mtime_ns)
        real_build(*args)

    monkeypatch.setattr(crew, "_build", build)
    results = crew.advance(never)
    assert {n: one["state"] for n, one in results.items()} == {71: "finished", 72: "finished"}
    assert stamps == [saved.stat().st_mtime_ns] * 2
    assert results[71][METRIC] == results[72][METRIC]  # of one config


def test_another_error_in_a_stack_still_ends_the_worker(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: StackedRuns) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(StackedRuns, "_step", broken)
    values = {"name": "projection", "epochs": 3, "batch_size": 16}
    sibling = {"number": 82, "values": values, "reported": 0}
    crew = Crew(bench, Job(81, values, 0, (sibling,)), ALONE)
    with pytest.raises(RuntimeError, match="mat1"):
        crew.advance(never)


class Story:
    """A search, told by hand what Tune would tell it."""

    def __init__(self, features: Path, folder: Path) -> None:
        self.folder = folder
        self.runner = InProcess(TrialSettings(features, folder, METRIC, threads=1))
        self.numbers: list[int] = []  # as they were handed out
        self.resume()

    def resume(self) -> None:
        """A new driver."""
        self.study = open_study(self.folder)
        self.searcher = StudySearcher(self.study, SEARCH, self.folder, fuse=1)

    def one(self) -> bool:
        """Train the next trial as far as it goes; whether there was one."""
        name = f"ray{len(self.numbers)}"
        job = self.searcher.suggest(name)
        if job == Searcher.FINISHED:
            return False
        self.numbers.append(job["number"])
        self.runner.start(Job(**job))
        while not (result := self.runner.advance())["done"]:
            self.searcher.on_trial_result(name, result)
        self.searcher.on_trial_complete(name, result)
        return True

    def states(self) -> list[TrialState]:
        return [one.state for one in self.study.get_trials()]


@pytest.fixture
def story(features: Path, tmp_path: Path) -> Story:
    return Story(features, tmp_path)


def full_for(number: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trial `number` runs out of memory in its second epoch, so many times."""
    left = [times]
    real = Run._train_step

    def step(self: Run) -> Any:
        if self.folder.name == f"{number:04d}" and self.step == 8 and left[0]:
            left[0] -= 1
            raise full()
        return real(self)

    monkeypatch.setattr(Run, "_train_step", step)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_trial_alone_waits_until_nothing_else_runs_and_ends_as_if_undisturbed(
    resumed: bool, story: Story, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_for(1, 1, monkeypatch)
    story.one()
    story.one()
    assert story.states()[1] == TrialState.RUNNING
    assert "Tried to allocate 2.00 GiB" in story.study.get_trials()[1].user_attrs["waited"]
    if resumed:
        story.resume()
    while story.one():
        pass
    assert story.numbers == [0, 1, 2, 3, 1]
    assert story.states() == [TrialState.COMPLETE] * 4
    bench = story.runner.workbench
    values = story.study.get_trials()[1].user_attrs["config"]
    alone = bench.run(workbench.config_of(values), story.folder / "alone")
    while not alone.finished:
        alone.advance()
    run = bench.resume(1, values)
    assert [row["step"] for row in run.rows] == [6, 12]
    tensors = zip(run.trained.values(), alone.trained.values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in tensors)
    told = story.study.get_trials()[1].intermediate_values
    assert told == {int(row["epoch"]): row[METRIC] for row in alone.rows}


@pytest.mark.parametrize("resumed", [False, True])
def test_a_trial_that_finds_too_little_memory_twice_fails_with_the_numbers(
    resumed: bool, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_for(1, 2, monkeypatch)
    for _ in range(4):
        story.one()
    if resumed:
        story.resume()
    assert story.one()
    assert not story.one()
    assert story.numbers == [0, 1, 2, 3, 1]
    failed = story.study.get_trials()[1]
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["reason"] == (
        "too little memory, also with no other trial running: OutOfMemoryError: CUDA out of "
        "memory. Tried to allocate 2.00 GiB."
    )
    assert [one.state for one in story.study.get_trials()].count(TrialState.COMPLETE) == 3


def test_one_that_waits_is_handed_out_alone_also_after_its_worker_died(story: Story) -> None:
    search = story.searcher
    for n in range(4):
        search.suggest(f"ray{n}")
    waits = {"number": 2, "done": True, "state": "waits", "reason": "full"}
    search.on_trial_complete("ray2", waits)
    assert search.suggest("early") is None
    for n in (0, 1, 3):
        assert search.suggest("early") is None
        ended = {"number": n, "done": True, "state": "failed", "reason": "x"}
        search.on_trial_complete(f"ray{n}", ended)
    assert search.suggest("late")["number"] == 2
    assert search.suggest("beside") is None
    search.on_trial_complete("late", error=True)
    search.hand_out_again("late", 2)
    assert search.waiting == [2]
    assert search.suggest("again")["number"] == 2


def test_one_of_a_group_may_wait_while_the_others_go_on(story: Story) -> None:
    search = story.searcher
    search.fuse = 3
    jobs = Job(**search.suggest("group")).all
    assert len(jobs) == 3
    search.on_trial_result(
        "group",
        {"members": [{"number": jobs[1].number, "done": True, "state": "waits", "reason": "full"}]},
    )
    assert search.lost("group") == [jobs[0].number, jobs[2].number]
    assert search.waiting == [jobs[1].number]


def test_a_group_is_no_larger_than_what_fitted(story: Story) -> None:
    Widths(story.folder).note_full("projection", 2, "full")
    story.searcher.fuse = 4
    assert len(Job(**story.searcher.suggest("ray")).all) == 2
    Widths(story.folder).note_full("projection", 3, "full")  # what is known already is less
    assert Widths(story.folder).of("projection", asked=4) == 2
    assert Widths(story.folder).of("lora", asked=4) == 4


def test_memory_is_given_back_before_a_smaller_stack_is_tried(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run, and no tensor of the step that failed, is alive then."""
    values = {"name": "projection", "epochs": 1, "batch_size": 16}
    sibling = {"number": 92, "values": values, "reported": 0}
    stacks_of(1, 0, monkeypatch)
    crew = Crew(bench, Job(91, values, 0, (sibling,)), ALONE)
    before = [weakref.ref(run) for run in crew.runs.values()]
    alive: list[int] = []

    def give_back() -> None:
        gc.collect()
        alive.append(sum(one() is not None for one in before))

    monkeypatch.setattr(crews, "give_back", give_back)
    crew.advance(never)
    assert alive == [0]
