"""Steps of trials, alone and as a stack: what several parts compare, count or time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.harness import difference
from trainables.training.loop import Run
from trainables.trials import cuda_graphs
from trainables.trials.cuda_graphs import Record
from trainables.trials.stacked import StackedRuns


class Counter:
    """A device's recorder that counts replays. On a CPU `replay` runs what it was given again."""

    def __init__(self) -> None:
        self.replayed = 0

    def __call__(self, device: torch.device) -> Record:
        real = cuda_graphs.recorder(device)

        def record(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
            replay = work if real is None else real(work)

            def counted() -> Tensor:
                self.replayed += 1
                return replay()

            return counted

        return record


def no_graphs(device: torch.device) -> None:
    del device


def step_alone(run: Run) -> None:
    run.count(run._train_step())


def step_together(stack: StackedRuns) -> None:
    numbers = stack._step()
    for n, run in enumerate(stack.runs):
        run.count(numbers, n)


def begin(runs: Sequence[Run]) -> None:
    for run in runs:
        run.begin_epoch()


Steps = Callable[[], Sequence[Mapping[str, float]]]  # a step of some runs; the numbers of each


def each(runs: Sequence[Run]) -> Steps:
    return lambda: [run._train_step().row() for run in runs]


def all_of(stack: StackedRuns) -> Steps:
    def step() -> list[Mapping[str, float]]:
        numbers = stack._step()
        return [numbers.row(n) for n in range(len(stack.runs))]

    return step


def farthest(expected: Sequence[Run], others: Sequence[Run], step: Steps, count: int) -> float:
    """The greatest difference of losses and gradients in `count` steps, over the largest of each:
    of the first of `others`, which `step` trains, from those `expected`. After each step they go
    on from where those are: Adam would make noise of what should be 0."""
    begin(expected)
    begin(others)
    worst = 0.0
    for _ in range(count):
        right = each(expected)()
        for run, other, own, numbers in zip(expected, others, right, step(), strict=False):
            worst = max(worst, difference(found(other, numbers), found(run, own))[0])
            with torch.no_grad():
                for name, parameter in run.trained.items():
                    other.trained[name].copy_(parameter)
        for run in (*expected, *others):
            run.step += 1
    return worst


def found(run: Run, numbers: Mapping[str, float]) -> dict[str, Tensor]:
    grads = [p.grad.flatten() for p in run.trained.values() if p.grad is not None]
    return {"loss": torch.tensor(numbers["loss"]), "gradients": torch.cat(grads)}
