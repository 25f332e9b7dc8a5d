"""What was measured on a card: lines with verdicts, as JSON and as one table.

Flows in: the lines of all parts and what the machine is. Flows out: `gpu.json`, and the table that
is printed and stands in `RESULTS.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainables.files import read_json, write_json

FORMAT = "cliptune-gpu-1"
FILE = "gpu.json"
HOW = "python -m benchmarks.gpu"


@dataclass(frozen=True)
class Line:
    """One number, with what it may be at least or at most."""

    what: str
    value: float | None = None  # None: not measured, `why` says what was in the way
    unit: str = ""
    least: float | None = None
    most: float | None = None
    why: str = ""
    broken: bool = False  # what should have been measured raised an error
    part: str = ""

    @property
    def verdict(self) -> str:
        if self.broken:
            return "fail"
        if self.value is None:
            return "not run"
        if self.least is None and self.most is None:
            return "measured"
        least, most = self.least, self.most
        kept = (least is None or self.value >= least) and (most is None or self.value <= most)
        return "pass" if kept and math.isfinite(self.value) else "fail"

    @property
    def bound(self) -> str:
        parts = (("at least", self.least), ("at most", self.most))
        return ", ".join(f"{word} {value:g}" for word, value in parts if value is not None)

    def cells(self) -> list[str]:
        value = "" if self.value is None else f"{self.value:.4g} {self.unit}".strip()
        verdict = f"{self.verdict}: {self.why}" if self.why else self.verdict
        return [self.part, self.what, value, self.bound, verdict.replace("|", "/")]


def write(path: Path, machine: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """JSON has no number for what is not finite: it becomes null, the verdict stays."""
    rows = [asdict(line) | {"verdict": line.verdict} for line in lines]
    for row in rows:
        if row["value"] is not None and not math.isfinite(row["value"]):
            row |= {"why": row["why"] or f"{row['value']}", "value": None, "broken": True}
    write_json(path, {"format": FORMAT, "machine": dict(machine), "rows": rows})


def read(path: Path) -> tuple[dict[str, Any], list[Line]]:
    stored = read_json(path)
    rows = [{k: v for k, v in row.items() if k != "verdict"} for row in stored["rows"]]
    return stored["machine"], [Line(**row) for row in rows]


def render(machine: Mapping[str, Any], lines: Sequence[Line]) -> list[str]:
    """The machine and the table, in Markdown."""
    head = ["part", "what", "measured", "bound", "verdict"]
    rows = [head, ["---"] * len(head), *(line.cells() for line in lines)]
    about = [f"- {name}: {value}" for name, value in machine.items()]
    return [*about, "", *(f"| {' | '.join(cells)} |" for cells in rows)]


def section(folder: Path) -> list[str]:
    """What `RESULTS.md` says about a GPU."""
    path = folder / FILE
    if not path.is_file():
        found = [
            f"`{HOW}` was NOT run yet: no card was at hand. It takes one NVIDIA card",
            f"and at most 8 minutes, and writes `{FILE}`; `python -m benchmarks.table` then puts",
            "its table here.",
        ]
    else:
        found = [f"Written by `{HOW}`, on one card.", "", *render(*read(path))]
    return ["## On a GPU", "", *found]
