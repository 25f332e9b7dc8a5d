"""What `cliptune evaluate` measured of a row's probabilities and conformal sets.

Flows in: the `calibration` of a row of result.json. Flows out: a `Calibration` of checked values.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.pages.checked import Estimate, Place
from trainables.errors import DataError
from trainables.metrics.calibration import KINDS, TIMES
from trainables.metrics.calibration_error import Bin


@dataclass(frozen=True)
class Believed:
    """How far probabilities at one scale are to be believed."""

    scale: float
    ece: float
    by_chance: float  # what `ece` of true probabilities stays below in 95 of 100 cases
    nll: Estimate
    brier: Estimate
    bins: list[Bin]

    @property
    def off(self) -> bool:
        """Whether the calibration error is larger than chance explains."""
        return self.ece > self.by_chance

    @property
    def confidence(self) -> float:
        """The mean probability of the likeliest class."""
        return sum(b.images * b.confidence for b in self.bins) / self._images

    @property
    def accuracy(self) -> float:
        return sum(b.images * b.accuracy for b in self.bins) / self._images

    @property
    def _images(self) -> int:
        return sum(b.images for b in self.bins)


@dataclass(frozen=True)
class Held:
    """Measurements of conformal sets of one kind."""

    coverage: Estimate
    size: Estimate
    empty: float


@dataclass(frozen=True)
class Sets:
    """Conformal sets of one kind, before and after the temperature."""

    kind: str
    before: Held
    after: Held


@dataclass(frozen=True)
class Calibration:
    """A row's probabilities before and after the temperature, and its sets at `confidence`; None
    where the classes are not those of val."""

    val_images: int
    before: Believed
    after: Believed
    confidence: float | None
    sets: list[Sets]
    without: list[str]  # why a kind is not there


def read_calibration(raw: Place) -> Calibration:
    with_sets = "confidence" in raw or "sets" in raw
    before, after = (_believed(raw[time], raw["scale"][time]) for time in TIMES)
    return Calibration(
        val_images=raw["val_images"].count(),
        before=before,
        after=after,
        confidence=raw["confidence"].number(high=1.0) if with_sets else None,
        sets=_sets(raw["sets"]) if with_sets else [],
        without=[one.text() for one in raw["without"].each()] if with_sets else [],
    )


def _believed(raw: Place, scale: Place) -> Believed:
    if not (bins := raw["bins"].each()):
        raise DataError(f"`{raw.path}.bins` must hold at least one bin, got none.")
    return Believed(
        scale=scale.number(),
        ece=raw["ece"].number(high=1.0),
        by_chance=raw["ece_by_chance"].number(high=1.0),
        nll=raw["nll"].estimate(),
        brier=raw["brier"].estimate(high=2.0),
        bins=[
            Bin(b["images"].count(), *(b[k].number(high=1.0) for k in ("confidence", "accuracy")))
            for b in bins
        ],
    )


def _sets(raw: Place) -> list[Sets]:
    found: dict[str, dict[str, Held]] = {}
    for one in raw.each():
        coverage, size = one["coverage"].estimate(high=1.0), one["size"].estimate()
        of_kind = found.setdefault(one["kind"].one_of(KINDS), {})
        of_kind[one["time"].one_of(TIMES)] = Held(coverage, size, one["empty"].number(high=1.0))
    for kind, held in found.items():
        for time in TIMES:
            if time not in held:
                raise DataError(f"`{raw.path}` lacks the {kind} sets {time} the temperature.")
    return [Sets(kind, **held) for kind, held in found.items()]
