"""The race between adapters, told: what each spent, its best, and when it was dropped.

Flows in: trials in the order of their numbers, with the journal's note on each turn. Flows out: a
`Lane` for each adapter, and sentences. Nothing is decided here, see `race.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Show = Callable[[float], str]  # how a value of the metric is written


@dataclass(frozen=True)
class Step:
    """A trial of the race."""

    number: int
    adapter: str
    epochs: int
    value: float | None  # its best, once it ended; a failed trial has none
    race: Mapping[str, Any]  # `cuts` and `out` when it was suggested; empty: unsaid


@dataclass
class Stretch:
    """Trials for which an adapter was out, and the numbers on which. It ends where the adapters
    that were in had no configuration left to try."""

    first: int
    after: int  # epochs that all trials before took
    spent: float  # epochs on it and on the leader each, when they were compared
    best: float | None  # None: no result
    leader: str
    leads: float | None
    last: int | None = None  # None: to the end


@dataclass
class Lane:
    """One adapter's trials in the race."""

    adapter: str
    trials: int = 0
    spent: int = 0  # epochs
    best: float | None = None
    best_trial: int | None = None
    path: list[tuple[int, float]] = field(default_factory=list)  # epochs of its own, best with them
    stretches: list[Stretch] = field(default_factory=list)
    out: int | None = None  # the first trial when it had no configuration left to try

    @property
    def waits(self) -> Stretch | None:
        """The stretch in which the adapter is out now."""
        return self.stretches[-1] if self.stretches and self.stretches[-1].last is None else None

    def run(self, step: Step) -> None:
        """Note a trial of the adapter."""
        self.trials += 1
        self.spent += step.epochs
        if step.value is None:
            return
        if self.best is None or step.value > self.best:
            self.best, self.best_trial = step.value, step.number
        self.path.append((self.spent, self.best))

    def hear(self, step: Step, after: int) -> None:
        """Note whose turn it was, and why not this adapter's."""
        cut, waits = step.race.get("cuts", {}).get(self.adapter), self.waits
        if cut and waits is None:
            self.stretches.append(Stretch(step.number, after, **cut))
        elif waits is not None and not cut:
            waits.last = step.number - 1
        if self.adapter in step.race.get("out", ()) and self.out is None:
            self.out = step.number

    def said(self, show: Show) -> str:
        """How the adapter ended, in words; empty where it is still in."""

        def shown(best: float | None) -> str:
            return "no result" if best is None else show(best)

        words = []
        if self.stretches:
            last = self.stretches[-1]
            until = "on" if last.last is None else f"to {last.last}"
            again = " again" if self.stretches[1:] else ""
            words.append(
                f"dropped{again} from trial {last.first} {until}, {last.after} epochs into the "
                f"search: {shown(last.best)} with {last.spent:.0f} of its own, where {last.leader} "
                f"had {shown(last.leads)}"
            )
        if self.out is not None:
            words.append(f"no configuration left to try from trial {self.out} on")
        return "; ".join(words)


def lanes(adapters: Sequence[str], steps: Sequence[Step]) -> list[Lane]:
    """The adapters of a search, the best first."""
    found = {name: Lane(name) for name in adapters}
    after = 0
    for step in steps:
        if step.race:
            for lane in found.values():
                lane.hear(step, after)
        if step.adapter in found:
            found[step.adapter].run(step)
        after += step.epochs
    return sorted(found.values(), key=lambda one: (one.best is None, -(one.best or 0.0)))
