"""Searchers beside each other: `python -m benchmarks.searchers --seeds 50 --workers 2`.

Flows in: the recorded surfaces. Flows out: `searchers.json` and `searchers.svg` in a folder, and
where the other benchmarks' results are too, `RESULTS.md`. The same seeds give the same numbers, in
whatever number of processes.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import tyro

from benchmarks.searchers.contest import Found, cells, parse, play
from benchmarks.searchers.plot import draw
from benchmarks.searchers.sheet import FILE, PLOT, render, summary
from benchmarks.table import Machine, Table
from pipelines.runs.provenance import versions
from trainables.errors import ConfigError, unknown
from trainables.files import now, read_json, write_json

HERE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Options:
    seeds: int = 50
    """On each cell."""
    workers: int = 2
    """Processes."""
    only: tuple[str, ...] = ()
    """Cells: `eurosat-16-1.coop`, `eurosat-16-1` (its adapters beside each other); else all."""
    together: tuple[int, ...] = (24,)
    """Budgets of several adapters beside each other, in trials' worth."""
    now: tuple[str, ...] = ()
    """Of cliptune as it is, such as `sampler=gp grace=3 kind=median`."""
    out: Path = HERE
    """The folder for what is written."""


def main(options: Options) -> None:
    started, known = time.monotonic(), cells()
    for name in options.only:
        if name not in known:
            raise ConfigError("`--only`: " + unknown("cell", name, known))
    more = parse(options.now)
    names = options.only or tuple(known)
    jobs = list(product(names, range(options.seeds)))
    one = functools.partial(play, together=options.together, options=more)
    if options.workers > 1:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, spawn) as pool:
            # A few seeds of one cell at a time: a process then grows few forests.
            told = pool.map(one, *zip(*jobs, strict=True), chunksize=min(5, options.seeds))
            found = list(watched(told, len(jobs)))
    else:
        found = list(watched((one(*job) for job in jobs), len(jobs)))
    about = {"created": now(), "versions": versions(), "now": list(options.now)}
    stored = summary(found, about | {"minutes": (time.monotonic() - started) / 60})
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / FILE, stored)
    draw(stored, options.out / PLOT)
    print("\n".join(render(stored)))
    if (options.out / "results.json").is_file():
        from benchmarks.__main__ import all_limits, all_rows

        machine = Machine(**read_json(options.out / "results.json")["machine"])
        Table(options.out, machine).write(all_rows(), all_limits())


def watched(
    found: Iterable[Found], total: int, say: Callable[[str], None] = print
) -> Iterator[Found]:
    """The same, with a line now and then on how far it is."""
    started = told = time.monotonic()
    for done, one in enumerate(found, 1):
        yield one
        clock = time.monotonic()
        if clock - told >= 10:
            told, rate = clock, done / (clock - started)
            say(f"{done} of {total}, {rate:.1f} a second, {(total - done) / rate:.0f} s left")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
