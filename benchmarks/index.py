"""`python -m benchmarks.index [--rows 1000000]`: a search of an index at size, and its building.

Flows in: nothing; vectors are drawn, alike by nothing and in groups. Flows out: the seconds of a
product and a stable sort beside ours, round by round in one process, with how many answers differ;
of the building, rows a second and the largest resident set; in `index.json`. `python -m
benchmarks.table` puts them on the page.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.embeddings import peak
from trainables.files import read_json, write_json

HERE, FILE = Path(__file__).parent, "index.json"
WIDTH, TOP, PART, GROUPS, MANY = 512, 100, 8192, 2000, 16
COMMIT = 100_000  # rows between two manifests
Kind = Literal["alike by nothing", "in groups"]
KINDS: tuple[Kind, ...] = ("alike by nothing", "in groups")


@dataclass(frozen=True)
class Args:
    rows: int = 1_000_000
    """How many vectors."""
    rounds: int = 9
    """Of each, one after the other."""
    folder: Path = Path(tempfile.gettempdir())
    """Where there is room: 2,600 bytes a vector, given back at the end."""


@dataclass(frozen=True)
class Run:
    """One kind of vectors. Seconds are those of the clock."""

    kind: str
    rows: int
    queries: int
    sorted_seconds: float  # medians
    our_seconds: float
    quickest: float  # of ours
    ratio: float  # median of the rounds'
    differ: int  # answers unlike those of a float64 sort
    built: float  # rows a second
    mebibytes: float  # the largest resident set until it was built
    opened: float  # seconds
    load: float


def drawn(rows: int, kind: Kind) -> Iterator[Tensor]:
    """Rows of unit length, a part at a time, `rows` in all."""
    random = torch.Generator().manual_seed(0)
    groups = F.normalize(torch.randn(GROUPS, WIDTH, generator=random), dim=1)
    for first in range(0, rows, PART):
        some = torch.randn(min(PART, rows - first), WIDTH, generator=random)
        if kind == "in groups":
            of = torch.randint(GROUPS, (len(some),), generator=random)
            some = groups[of] + 0.02 * some
        yield F.normalize(some, dim=1)


def by_sort(rows: Tensor, asked: Tensor) -> None:
    for column in (rows @ asked.T).unbind(1):
        column.argsort(descending=True, stable=True)[:TOP].tolist()


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(args: Args, kind: Kind, where: Path) -> list[Run]:
    from pipelines.search.exact import top
    from pipelines.search.kept import Kept
    from pipelines.search.names import table_of

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    one, seconds, saved, at = Kept.new(where, WIDTH), 0.0, 0, 0
    for some in drawn(args.rows, kind):
        seconds, at = seconds + timed(partial(one.add, some)), at + len(some)
        if at - saved >= COMMIT or at == args.rows:
            names = table_of([(f"/{n:09}.jpg", (1, 1), n, None) for n in range(saved, at)])
            seconds, saved = seconds + timed(partial(one.commit, names)), at
    built, mebibytes = args.rows / seconds, peak(os.getpid()) / 1024
    opened = timed(lambda: Kept.open(where, WIDTH))
    rows, found = one.rows(), []
    plain = rows.values.clone()
    for queries in (1, MANY):
        asked = F.normalize(next(drawn(PART, kind))[:queries] + 0.01, dim=1)
        cosines = torch.cat(
            [(some.double() @ asked.double().T).float() for some in plain.split(PART)]
        )
        wanted = cosines.sort(dim=0, descending=True, stable=True).indices[:TOP].T
        differ = int((top(rows, asked, TOP)[1] != wanted).any(1).sum())
        ways = partial(by_sort, plain, asked), partial(top, rows, asked, TOP)
        pairs = [(timed(ways[0]), timed(ways[1])) for _ in range(args.rounds)]
        before, ours = zip(*pairs, strict=True)
        ratio = statistics.median(b / o for b, o in pairs)
        middle = statistics.median(before), statistics.median(ours), min(ours)
        about = (built, mebibytes, opened, os.getloadavg()[0])
        found.append(Run(kind, args.rows, queries, *middle, ratio, differ, *about))
    return found


def section(folder: Path) -> list[str]:
    """The page's part; nothing where it was not measured."""
    if not (folder / FILE).is_file():
        return []
    runs = [Run(**one) for one in read_json(folder / FILE)]
    return [
        "## The index of a search",
        "",
        f"Written by `python -m benchmarks.index --rows {runs[0].rows}`: the {TOP} nearest of",
        f"{runs[0].rows:,} vectors {WIDTH} wide, two threads, in-process and warm; a product and a",
        "stable sort, as it was, beside the exact search of today, round by round. Milliseconds of",
        "the clock, medians; other work on the machine lengthens them, its load stands beside.",
        "Answers differ where a row or its place is not that of a float64 sort.",
        "",
        "| vectors | queries | before → ours | quickest | ratio | differ | load | built, rows/s "
        "| peak, MiB | opened, ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {run.kind} | {run.queries} | {run.sorted_seconds * 1e3:,.0f} → "
            f"{run.our_seconds * 1e3:,.0f} | {run.quickest * 1e3:,.0f} | {run.ratio:.1f}x "
            f"| {run.differ} | {run.load:.1f} | {run.built:,.0f} | {run.mebibytes:,.0f} "
            f"| {run.opened * 1e3:,.0f} |"
            for run in runs
        ),
        "",
    ]


def main(args: Args) -> None:
    torch.set_num_threads(2)
    runs: list[Run] = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="cliptune-bench-", dir=args.folder) as name:
            runs += measure(args, kind, Path(name))
        print(*runs[-2:], sep="\n", flush=True)
        write_json(HERE / FILE, [asdict(run) for run in runs])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
