"""Sums over a study's trials that read each trial once.

Flows in: all trials of a study in the order of their numbers, again and again. Flows out: the same
sum as if all were read each time. A trial that ended never changes, so the trials before the first
that has not ended are summed up for good, and only those behind it are read anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar

from optuna.trial import FrozenTrial


class Sum(Protocol):
    """A sum over a number of trials."""

    def add(self, trial: FrozenTrial) -> None: ...

    def copy(self) -> Self:
        """A copy that can be added to by itself."""
        ...


Total = TypeVar("Total", bound=Sum)


class Ledger(Generic[Total]):
    """A sum, and how far it has come."""

    def __init__(self, nothing: Total) -> None:
        self.settled = nothing
        self.read = 0  # trials in it

    def of(self, trials: Sequence[FrozenTrial]) -> Total:
        """The sum of all `trials`, which are those of the last call and more."""
        while self.read < len(trials) and trials[self.read].state.is_finished():
            self.settled.add(trials[self.read])
            self.read += 1
        total = self.settled.copy()
        for trial in trials[self.read :]:
            total.add(trial)
        return total
