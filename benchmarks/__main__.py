"""`python -m benchmarks [--rows text images/jpeg] [--rounds 5]`: run rows, write the table."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for every process started from here

if TYPE_CHECKING:
    from benchmarks.harness import Row

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Args:
    rows: tuple[str, ...] = ()
    """Rows or families of rows, such as `text/coop` or `images`; all where none is given."""
    rounds: int = 5
    """Rounds a row, at least 5 for an interval worth its name."""


def all_rows() -> list[Row]:
    from benchmarks import fused, images, ranks, search, text, vision

    families = (text, vision, images, ranks, fused, search)
    return [row for family in families for row in family.ROWS]


def select(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    from trainables.errors import ConfigError, unknown

    known = {row.name for row in rows} | {row.name.split("/")[0] for row in rows}
    for name in names:
        if name not in known:
            raise ConfigError(unknown("row", name, known))
    return [row for row in rows if not names or {row.name, row.name.split("/")[0]} & set(names)]


def main(args: Args) -> int:
    """The exit status: 1 where a row failed."""
    import torch

    from benchmarks.harness import measure
    from benchmarks.table import Entry, Machine, Table, load_average

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT 0.21
    rows = all_rows()
    table = Table(HERE, Machine.this())
    print(*table.machine.lines(), f"load average {load_average():.2f}", sep="\n", flush=True)
    failed = False
    for row in select(rows, args.rows):
        print(f"{row.name}: {row.what}", flush=True)
        result = measure(row, args.rounds, lambda line: print(line, flush=True))
        table.entries[row.name] = Entry(result, load_average())
        table.write(rows)
        verdict = result.verdict(row)
        failed |= verdict.startswith("FAILED")
        print(
            f"{row.name}: {result.ratio:.2f}x [{result.low:.2f}, {result.high:.2f}], "
            f"target {row.target:g}x, difference {result.error:.1e}: {verdict}",
            flush=True,
        )
    print(f"wrote {HERE / 'RESULTS.md'}")
    return int(failed)


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
