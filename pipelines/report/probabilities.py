"""A row's probabilities and conformal sets in words that claim no more than chance leaves.

Flows in: a `Result` whose rows may be calibrated. Flows out: the sentences of the section, the same
for the page and the Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.pages.numbers import first, number, plural, setting, share
from pipelines.report.calibration import Believed, Calibration
from pipelines.report.result import Result, Row
from trainables.metrics.conformal import spread


@dataclass(frozen=True)
class Calibrated:
    """A row whose probabilities were measured."""

    row: Row
    found: Calibration

    @property
    def measures(self) -> dict[str, tuple[float, float]]:
        """The measures before and after the temperature; for each, 0 is best."""
        before, after = self.found.before, self.found.after
        return {
            "NLL": (before.nll.value, after.nll.value),
            "Brier": (before.brier.value, after.brier.value),
            "ECE": (before.ece, after.ece),
        }

    @property
    def worse(self) -> list[str]:
        """The measures that are higher after the temperature, in the digits that are shown."""
        both = self.measures.items()
        return [
            name for name, (before, after) in both if after > before and _changes(before, after)
        ]


@dataclass(frozen=True)
class Section:
    """All that is said of probabilities; `shown` are the chosen row and the baseline."""

    rows: list[Calibrated]
    shown: list[Calibrated]
    verdict: str
    lines: list[str]
    promise: list[str]
    without: list[str]


def section(result: Result | None) -> Section | None:
    """The section; None where no row is calibrated."""
    rows = [Calibrated(r, r.calibration) for r in (result.rows if result else []) if r.calibration]
    if not rows:
        return None
    shown = [one for one in rows if one.row.selected or one.row.is_baseline] or rows[:1]
    shown.sort(key=lambda one: not one.row.selected)
    lead = shown[0]
    with_sets = [one for one in [lead, *rows] if one.found.confidence is not None]
    return Section(
        rows,
        shown,
        verdict(lead),
        lines(lead),
        promise(with_sets[0].found) if with_sets else [],
        without(rows),
    )


def verdict(one: Calibrated) -> str:
    """The one sentence: whether the error is larger than chance explains."""
    own = f"{one.row.name}'s probabilities"
    off, fitted = "off by more than chance explains", "the temperature fitted on val"
    return {
        (False, False): f"No fault of {own} is shown, before or after {fitted}.",
        (True, False): f"{own} are {off}; after {fitted} no fault is shown.",
        (False, True): f"No fault of {own} is shown; after {fitted} they are {off}.",
        (True, True): f"{own} are {off}, before and after {fitted}.",
    }[one.found.before.off, one.found.after.off]


def lines(one: Calibrated) -> list[str]:
    """The numbers behind the verdict, and whether the temperature made anything worse on test."""
    found = one.found
    fitted = f"fitted on {plural(found.val_images, 'val image')}"
    return [
        f"Before, at its own scale of {setting(found.before.scale)}: {_worth(found.before)}",
        f"After, at a scale of {setting(found.after.scale)} {fitted}: {_worth(found.after)}",
        _change(one),
    ]


def _worth(found: Believed) -> str:
    said = (
        f"the likeliest class has a probability of {share(found.confidence)} on average and is "
        f"right in {share(found.accuracy)}. ECE is {number(found.ece, 3)}; that of true "
        f"ones would stay below {number(found.by_chance, 3)} in 95 of 100 cases"
    )
    if not found.off:
        return f"{said}."
    gap = found.confidence - found.accuracy
    if abs(gap) < found.ece / 2:
        return f"{said}: off in both directions."
    return f"{said}: {'too sure' if gap > 0 else 'not sure enough'}."


def _change(one: Calibrated) -> str:
    said = []
    for name, (before, after) in one.measures.items():
        if _changes(before, after):
            way = "rises" if after > before else "falls"
            said.append(f"{name} {way} from {number(before, 3)} to {number(after, 3)}")
        else:
            said.append(f"{name} stays at {number(after, 3)}")
    doubt = f" By {' and '.join(one.worse)} the temperature makes the probabilities worse on these "
    doubt += "images."
    return f"On test {said[0]}, {said[1]}, and {said[2]}.{doubt if one.worse else ''}"


def _changes(before: float, after: float) -> bool:
    return number(before, 3) != number(after, 3)


def promise(found: Calibration) -> list[str]:
    """The promise of the sets by val, and how far one val may be from it."""
    assert found.confidence is not None
    ends = spread(found.val_images, found.confidence)
    images = plural(found.val_images, "image")
    said = (
        f"The promise: over val and image drawn together, at least {100 * found.confidence:g} % of "
        "the sets hold the right class. Coverage here is of this one val, and its interval over "
        "test images alone."
    )
    if ends is None:
        return [said, f"A val of {images} is too small to leave any class out of a set."]
    low, high = (share(end) for end in ends)
    return [
        said,
        f"From one val of {images} to another, true coverage of split and adaptive sets is between "
        f"{low} and {high} in 95 of 100 cases. An adapter that val chose fits val better than new "
        "images: its sets may hold a little less.",
    ]


def without(rows: list[Calibrated]) -> list[str]:
    """Why kinds of sets are missing, each reason once; with its rows, where they are not all."""
    reasons: dict[str, list[str]] = {}
    for one in rows:
        for reason in one.found.without:
            reasons.setdefault(reason, []).append(one.row.name)
    return [
        first(reason) if len(names) == len(rows) else f"{', '.join(names)}: {reason}"
        for reason, names in reasons.items()
    ]
