"""Hyperparameters that change while training: their text form, one field of a run's configuration.

`"3: optim.lr=0.002 loss.label_smoothing=0.1; 5: optim.lr=0.001"`: from the third epoch on, and from
the fifth. Flows in: that text, or the changes. Flows out: the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainables.errors import ConfigError, unknown

# What may change between two epochs: numbers that fix no shape, no batch and no branch.
CHANGING = (
    *("optim.lr", "optim.weight_decay", "loss.label_smoothing", "loss.hardness"),
    "temperature.scale",
)


@dataclass(frozen=True)
class Change:
    """Values that hold from the beginning of an epoch on; epochs count from 1."""

    from_epoch: int
    values: Mapping[str, Any]  # dotted

    def __str__(self) -> str:
        values = " ".join(f"{name}={value}" for name, value in self.values.items())
        return f"{self.from_epoch}: {values}"


def write_changes(changes: Iterable[Change]) -> str:
    return "; ".join(map(str, changes))


def read_changes(text: str) -> tuple[Change, ...]:
    """The changes in `text`, their values still as words. Epochs rise; the first has no changes, it
    begins with the configuration.

    >>> write_changes(read_changes("3: optim.lr=0.002; 5: optim.lr=0.001"))
    '3: optim.lr=0.002; 5: optim.lr=0.001'
    """
    changes: list[Change] = []
    for part in text.split(";") if text.strip() else ():
        epoch, _, words = part.partition(":")
        pairs = [word.partition("=") for word in words.split()]
        if not epoch.strip().isdecimal() or not pairs or not all(eq for _, eq, _ in pairs):
            raise ConfigError(
                f"`changes` must read like `3: optim.lr=0.001; 5: optim.lr=0.0005`, got {text!r}."
            )
        change = Change(int(epoch), {name: value for name, _, value in pairs})
        if change.from_epoch <= (changes[-1].from_epoch if changes else 1):
            raise ConfigError(
                f"`changes` must be at epochs from 2 on, each later than the one before, got "
                f"{text!r}."
            )
        for name in change.values:
            if name not in CHANGING:
                raise ConfigError("changes: " + unknown("changing field", name, CHANGING))
        changes.append(change)
    return tuple(changes)
