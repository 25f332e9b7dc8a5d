"""A search on recorded surfaces, and what its answer is worth after so many epochs.

Flows in: a policy and the surfaces of one adapter or several. Flows out: the trials it had trained,
and of them the answer at any number of epochs spent, with its regret on val and on test.

A trial with nothing to train ends after one epoch; one that failed counts by what it had reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from benchmarks.searchers.policies import Cell, Heard, Policy
from benchmarks.searchers.surfaces import Array, Surface
from pipelines.tune.study.choice import NEAR
from trainables.training.measure import CALIBRATED
from trainables.training.selection import LIKELIHOOD

Rule = Literal["metric", "choice"]
ALIKE = 0.5  # the correlation of two trials' hits, image by image


@dataclass(frozen=True)
class Trained:
    """A trial: what it was answered, and how far it went."""

    adapter: str
    row: int  # of the adapter's surface
    epochs: int


def search(policy: Policy, cell: Cell, budget: int) -> list[Trained]:
    """Let a policy spend `budget` epochs; the last trial ends where they do."""
    history: list[Trained] = []
    while budget > 0 and (asked := policy.ask()) is not None:
        adapter, config = asked
        row = cell[adapter].nearest(config)
        every = boards(cell)[adapter].heard[row]
        epochs, goes_on = 0, True
        while goes_on and epochs < min(len(every), budget):
            goes_on = policy.hear(every[epochs])
            epochs += 1
        history.append(Trained(adapter, row, epochs))
        budget -= epochs
    return history


Reached = tuple[str, float, float, float, float]  # adapter; val, likelihood, calibrated; test


class Board:
    """A surface after each epoch, R x E, as what the engine keeps of a trial: its best epoch so
    far, by the metric, of equal ones by likelihood. Curves that ended stay where they were."""

    def __init__(self, surface: Surface) -> None:
        self.metric, epochs = surface.about["metric"], surface.about["epochs"]
        self.images = surface.about["images"]["val"]
        self.curves = surface.curves
        self.best_epoch = np.zeros((len(self.curves), epochs), int)  # from 0
        for row, curves in enumerate(self.curves):
            value = curves[self.metric]
            likely = curves.get(LIKELIHOOD, np.zeros(len(value)))
            top = 0
            for epoch in range(epochs):
                if epoch < len(value) and (value[epoch], likely[epoch]) > (value[top], likely[top]):
                    top = epoch
                self.best_epoch[row, epoch] = top

    def of_best(self, name: str) -> Array:
        """A curve's value at the best epoch so far: (R, E)."""
        pairs = zip(self.curves, self.best_epoch, strict=True)
        return np.stack([curves[name][best] for curves, best in pairs])

    @cached_property
    def val(self) -> Array:
        return self.of_best(self.metric)

    @cached_property
    def test(self) -> Array:
        return self.of_best(self.metric.replace("val/", "test/"))

    @cached_property
    def likelihood(self) -> Array:
        return self.of_best(LIKELIHOOD) if LIKELIHOOD in self.curves[0] else 0 * self.val

    @cached_property
    def calibrated(self) -> Array:
        """Nothing to choose by: NaN."""
        name = f"val/{CALIBRATED}"
        return self.of_best(name) if name in self.curves[0] else np.nan * self.val

    def reached(self, trial: Trained, epochs: int) -> Reached:
        """What a trial had come to after `epochs`, or at its end."""
        at = trial.row, min(trial.epochs, epochs) - 1
        likely, calibrated = float(self.likelihood[at]), float(self.calibrated[at])
        return trial.adapter, float(self.val[at]), likely, calibrated, float(self.test[at])

    @cached_property
    def heard(self) -> list[list[Heard]]:
        """What a policy is told of a row, epoch by epoch."""
        found = []
        for row, curves in enumerate(self.curves):
            own = {name: curve.tolist() for name, curve in curves.items() if name[:4] == "val/"}
            length, top = len(own[self.metric]), self.best_epoch[row]
            told = []
            for epoch in range(length):
                values = {name: curve[epoch] for name, curve in own.items()}
                best = {name: curve[top[epoch]] for name, curve in own.items()}
                last = epoch + 1 == length
                told.append(Heard(epoch + 1, last, values, best, int(top[epoch]) + 1))
            found.append(told)
        return found


_BOARDS: dict[int, tuple[Surface, Board]] = {}


def boards(cell: Cell) -> dict[str, Board]:
    """Made once of each surface."""
    found = {}
    for name, surface in cell.items():
        if id(surface) not in _BOARDS:
            _BOARDS[id(surface)] = surface, Board(surface)
        found[name] = _BOARDS[id(surface)][1]
    return found


@dataclass(frozen=True)
class Answer:
    """What a search would hand back."""

    adapter: str
    val: float
    test: float


def answers(
    history: Sequence[Trained], cell: Cell, marks: Sequence[int], rule: Rule
) -> list[Answer | None]:
    """The answer after each of `marks` epochs; None: nothing had reported by then.

    `metric`: the trial that is best on val, of equal ones the likelier, then the earlier. `choice`:
    as cliptune chooses, zero-shot among the candidates: of those whose metric lies within `NEAR`
    standard errors of the best's the one that is likeliest after temperature, first of each
    adapter's, then of these. Surfaces hold no values of single images, so the error of a difference
    is taken for that of two binomials whose hits correlate by `ALIKE`, and no adapter is preferred
    for being simple.
    """
    own = boards(cell)
    begun = np.cumsum([0, *(one.epochs for one in history)])
    found: list[Answer | None] = []
    for mark in marks:
        reached = [
            own[one.adapter].reached(one, mark - int(start))
            for one, start in zip(history, begun, strict=False)
            if start < mark
        ]
        if rule == "choice":
            reached.insert(0, zero_shot(cell))
        found.append(chosen(reached, own, rule) if reached else None)
    return found


def zero_shot(cell: Cell) -> Reached:
    surface = next(iter(cell.values()))
    known, metric = surface.baseline, surface.about["metric"]
    val, test = known[metric], known[metric.replace("val/", "test/")]
    calibrated = known.get(f"val/{CALIBRATED}", np.nan)
    return "zero_shot", val, known.get(LIKELIHOOD, 0.0), calibrated, test


def chosen(reached: Sequence[Reached], own: dict[str, Board], rule: Rule) -> Answer:
    images = next(iter(own.values())).images
    if rule == "choice" and not np.isnan(reached[0][3]):
        each = {one[0]: [other for other in reached if other[0] == one[0]] for one in reached}
        top = likeliest([likeliest(of, images) for of in each.values()], images)
    else:
        top = max(reached, key=lambda one: one[1:3])
    return Answer(top[0], top[1], top[4])


def likeliest(reached: Sequence[Reached], images: int) -> Reached:
    top = max(reached, key=lambda one: one[1:3])
    near = [one for one in reached if top[1] - one[1] <= NEAR * error(top[1], one[1], images)]
    return max(near, key=lambda one: (one[3], *one[1:3]))


def error(one: float, other: float, images: int) -> float:
    """The standard error of the difference of two shares of the same images."""
    a, b = one * (1 - one), other * (1 - other)
    return float(np.sqrt(max(0.0, a + b - 2 * ALIKE * np.sqrt(a * b)) / images)) + 1e-9


def ceilings(cell: Cell) -> Answer:
    """The highest that a finished trial, or zero-shot, has on val, and on test."""
    own, base = boards(cell).values(), zero_shot(cell)
    val = max(base[1], *(float(one.val[:, -1].max()) for one in own))
    test = max(base[4], *(float(one.test[:, -1].max()) for one in own))
    return Answer("", val, test)
