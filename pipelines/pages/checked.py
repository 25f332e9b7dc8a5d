"""JSON values, checked for their types.

Flows in: a value of a parsed file, and its place there. Flows out: plain values, or a `DataError`
that names the place.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from trainables.errors import DataError

SLACK = 1e-6  # a mean of ones may be a little more than 1


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval. A difference also has its p, and its p corrected for the
    number of rows, or of pairs."""

    value: float
    low: float
    high: float
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Place:
    """A value and where it stands, as `lora.calibration.before.ece`."""

    value: Any
    path: str

    def __contains__(self, key: str) -> bool:
        return key in self._of(dict, "an object")

    def __getitem__(self, key: str) -> Place:
        if key not in self:
            raise DataError(f"`{self.path}` lacks the field `{key}`.")
        return Place(self.value[key], f"{self.path}.{key}")

    def each(self) -> list[Place]:
        found = enumerate(self._of(list, "a list"))
        return [Place(value, f"{self.path}[{number}]") for number, value in found]

    def text(self) -> str:
        return str(self._of(str, "a text"))

    def one_of(self, choices: Collection[str]) -> str:
        if (found := self.text()) not in choices:
            raise self._fault(f"one of {', '.join(choices)}")
        return found

    def number(self, low: float = 0.0, high: float = math.inf) -> float:
        rule = f"a number of at least {low:g}" + (
            f" and at most {high:g}" if high < math.inf else ""
        )
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self._fault(rule)
        if not math.isfinite(self.value) or not low - SLACK <= self.value <= high + SLACK:
            raise self._fault(rule)
        return float(self.value)

    def count(self) -> int:
        if type(self.value) is not int or self.value < 1:
            raise self._fault("a whole number of at least 1")
        return self.value

    def estimate(self, high: float = math.inf) -> Estimate:
        value, low, top = (self[key].number(high=high) for key in ("value", "low", "high"))
        return Estimate(value, low, top)

    def _of(self, kind: type, name: str) -> Any:
        if not isinstance(self.value, kind):
            raise self._fault(name)
        return self.value

    def _fault(self, rule: str) -> DataError:
        return DataError(f"`{self.path}` must be {rule}, got {self.value!r:.60}.")
