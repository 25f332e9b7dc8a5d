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
    from benchmarks.harness import Limit, Row

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Args:
    rows: tuple[str, ...] = ()
    """Rows or families of rows, such as `text/coop` or `images`; all where none is given."""
    rounds: int = 5
    """Rounds a row, at least 5 for an interval worth its name."""


def all_rows() -> list[Row]:
    from benchmarks import captioning, fused, images, ranks, search, text, vision

    families = (text, vision, images, ranks, captioning, fused, search)
    return [row for family in families for row in family.ROWS]


def all_limits() -> list[Limit]:
    from benchmarks import overhead

    return list(overhead.LIMITS)


def select(rows: Sequence[Row | Limit], names: Sequence[str]) -> list[Row | Limit]:
    from trainables.errors import ConfigError, unknown

    known = {row.name for row in rows} | {row.name.split("/")[0] for row in rows}
    for name in names:
        if name not in known:
            raise ConfigError(unknown("row", name, known))
    return [row for row in rows if not names or {row.name, row.name.split("/")[0]} & set(names)]


def main(args: Args) -> int:
    """The exit status: 1 where a row failed."""
    import torch

    from benchmarks.harness import Limit, measure
    from benchmarks.table import Entry, Machine, Seconds, Table, load_average

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT 0.21
    rows, limits = all_rows(), all_limits()
    table = Table(HERE, Machine.this())
    print(*table.machine.lines(), f"load average {load_average():.2f}", sep="\n", flush=True)
    failed = False
    for row in select([*rows, *limits], args.rows):
        print(f"{row.name}: {row.what}", flush=True)
        if isinstance(row, Limit):
            found = Seconds(row.measure(), load_average())
            table.seconds[row.name], verdict = found, found.verdict(row)
            said = f"{found.seconds:.3g} s, allowed {row.allowed:g} s"
        else:
            result = measure(row, args.rounds, lambda line: print(line, flush=True))
            table.entries[row.name], verdict = Entry(result, load_average()), result.verdict(row)
            said = (
                f"{result.ratio:.2f}x [{result.low:.2f}, {result.high:.2f}], "
                f"target {row.target:g}x, difference {result.error:.1e}"
            )
        table.write(rows, limits)
        failed |= verdict.startswith("FAILED")
        print(f"{row.name}: {said}: {verdict}", flush=True)
    print(f"wrote {HERE / 'RESULTS.md'}")
    return int(failed)


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Args, description=__doc__)))
