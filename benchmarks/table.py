"""`results.json` and `RESULTS.md`: what was measured, on what machine, and what was not.

Flows in: the results of some rows. Flows out: both files. Rows of another machine are dropped, rows
of this one stay until they are measured again.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import embeddings, heads, index
from benchmarks.gpu import sheet
from benchmarks.harness import Limit, Result, Row
from benchmarks.searchers import costs, populations
from benchmarks.searchers import sheet as searchers
from trainables.files import read_json, write_bytes, write_json

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
NOT_MEASURED = (
    ("the same steps against CoOp's, CLIP-LoRA's and Tip-Adapter's own code", "their code"),
)


@dataclass(frozen=True)
class Machine:
    """What a CPU-second ratio depends on besides the code."""

    cpu: str
    flags: str
    threads: int
    torch: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        path = Path("/proc/cpuinfo")
        info = path.read_text() if path.is_file() else ""
        model, flags = (re.search(rf"{name}\s*: (.*)", info) for name in ("model name", "flags"))
        has = flags[1].split() if flags else []
        backends = {"MKL": torch.backends.mkl, "oneDNN": torch.backends.mkldnn}
        build = [name for name, backend in backends.items() if backend.is_available()]
        return cls(
            cpu=model[1] if model else platform.processor(),
            flags=", ".join(f"{name} {'yes' if name in has else 'no'}" for name in FLAGS),
            threads=torch.get_num_threads(),
            torch=f"{torch.__version__} ({', '.join(build)})",
            python=platform.python_version(),
        )

    def lines(self) -> list[str]:
        return [
            f"CPU: {self.cpu}, {self.flags}",
            f"{self.threads} thread, torch {self.torch}, Python {self.python}",
        ]


@dataclass(frozen=True)
class Entry:
    """A measured row."""

    result: Result
    load: float  # the machine's load average of one minute, after the row


@dataclass(frozen=True)
class Seconds:
    """A measured limit."""

    seconds: float
    load: float

    def verdict(self, limit: Limit) -> str:
        return "kept" if self.seconds <= limit.allowed else "not kept"


def load_average() -> float:
    return os.getloadavg()[0]


class Table:
    """The rows measured on one machine; of what was measured on a card, the page."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.folder, self.machine = folder, machine
        self.entries: dict[str, Entry] = {}
        self.seconds: dict[str, Seconds] = {}
        path = folder / "results.json"
        if path.is_file():
            stored = read_json(path)
            if stored["machine"] == asdict(machine):
                self.entries = {
                    name: Entry(Result(**entry["result"]), entry["load"])
                    for name, entry in stored["rows"].items()
                }
                limits = stored.get("limits", {})
                self.seconds = {name: Seconds(**one) for name, one in limits.items()}

    def write(self, rows: Sequence[Row], limits: Sequence[Limit]) -> None:
        """Both files, in the order given; entries of other names are dropped."""
        found: Mapping[str, Any] = {
            row.name: asdict(self.entries[row.name]) for row in rows if row.name in self.entries
        }
        kept: Mapping[str, Any] = {
            one.name: asdict(self.seconds[one.name]) for one in limits if one.name in self.seconds
        }
        stored = {"machine": asdict(self.machine), "rows": found, "limits": kept}
        write_json(self.folder / "results.json", stored)
        write_bytes(self.folder / "RESULTS.md", self.render(rows, limits).encode())

    def render(self, rows: Sequence[Row], limits: Sequence[Limit]) -> str:
        """The page."""
        lines = [
            "# Benchmarks",
            "",
            "Written by `make bench`. CPU seconds of plain transformers, PEFT or PIL over ours:",
            "the median ratio of interleaved rounds, its 95 % bootstrap interval, and the largest",
            "difference of outputs and gradients over their largest value. A row whose outputs",
            "differ, or whose ratios spread (IQR / median) by more than 15 %, has FAILED.",
            "",
            *(f"- {line}" for line in self.machine.lines()),
            "",
            "| row | what | target | measured | 95 % | CPU s, before → ours | rounds | load "
            "| difference | verdict |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(self._line(row) for row in rows),
            "",
            "| limit | what | allowed | measured | load | verdict |",
            "|---|---|---|---|---|---|",
            *(self._limit(one) for one in limits),
            "",
            "| not measured here | needs |",
            "|---|---|",
            *(f"| {what} | {need} |" for what, need in NOT_MEASURED),
            "",
            *costs.section(self.folder),
            *embeddings.section(self.folder),
            *index.section(self.folder),
            *heads.section(self.folder),
            *sheet.section(self.folder),
            "",
            *searchers.section(self.folder),
            "",
            *populations.section(self.folder),
        ]
        return "\n".join(lines) + "\n"

    def _limit(self, limit: Limit) -> str:
        start = f"| `{limit.name}` | {limit.what} | {limit.allowed:g} s "
        if limit.name not in self.seconds:
            return start + "| | | not run |"
        found = self.seconds[limit.name]
        return start + f"| {found.seconds:.3g} s | {found.load:.1f} | {found.verdict(limit)} |"

    def _line(self, row: Row) -> str:
        start = f"| `{row.name}` | {row.what} | {row.target:g}x "
        if row.name not in self.entries:
            return start + "| | | | | | | not run |"
        entry = self.entries[row.name]
        result, verdict = entry.result, entry.result.verdict(row)
        measured = "| | | " if verdict.startswith("FAILED") else (
            f"| {result.ratio:.2f}x | {result.low:.2f} to {result.high:.2f} "
            f"| {result.baseline_seconds:.3g} → {result.our_seconds:.3g} "
        )  # fmt: skip
        allowed = f" of {row.tolerance:.0e}" if row.tolerance else ""
        return (
            f"{start}{measured}| {result.rounds} | {entry.load:.1f} "
            f"| {result.error:.1e}{allowed} | {verdict} |"
        )


if __name__ == "__main__":  # the page of what is stored, without measuring anything
    from benchmarks.__main__ import HERE, all_limits, all_rows

    stored = Table(HERE, Machine(**read_json(HERE / "results.json")["machine"]))
    stored.write(all_rows(), all_limits())
