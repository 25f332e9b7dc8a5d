"""`python -m benchmarks.embeddings [--rows 250000 1000000]`: the memory of `encode --embeddings`.

Flows in: nothing; vectors in half precision are drawn. Flows out: the largest resident set and the
seconds of the command at each number of rows, and the bytes that a row more takes, in
`embeddings.json`; `python -m benchmarks.table` puts them on the page.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap

from trainables.files import read_json, write_json

HERE, FILE = Path(__file__).parent, "embeddings.json"
WIDTH, CLASSES, PART, BLOCK = 512, 100, 1_000_000, 50_000
GOAL = 10_000_000
LOOK = 0.05  # seconds between two looks


@dataclass(frozen=True)
class Args:
    rows: tuple[int, ...] = (250_000, 500_000, 1_000_000)
    """How many vectors, each number in a run of its own."""
    folder: Path = Path(tempfile.gettempdir())
    """Where there is room: 2,100 bytes a vector, given back at the end."""


@dataclass(frozen=True)
class Run:
    rows: int
    mebibytes: float  # the largest resident set, pages of mapped files included
    seconds: float


def draw(folder: Path, rows: int) -> None:
    """clip-retrieval's layout with `rows` vectors of `WIDTH`, keys and class names, in parts."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(rows)
    for part, first in enumerate(range(0, rows, PART)):
        size = min(PART, rows - first)
        path = folder / f"img_emb/img_emb_{part}.npy"
        array = open_memmap(path, "w+", np.float16, (size, WIDTH))
        for at in range(0, size, BLOCK):
            some = array[at : at + BLOCK]
            some[:] = random.standard_normal(some.shape, np.float32)
        array.flush()
        about = {
            "key": [f"{first + n:09}" for n in range(size)],
            "class_name": [f"class {n % CLASSES}" for n in range(size)],
        }
        pq.write_table(pa.table(about), folder / f"metadata/metadata_{part}.parquet")


def measure(rows: int, where: Path) -> Run:
    with tempfile.TemporaryDirectory(prefix="cliptune-bench-", dir=where) as name:
        folder = Path(name)
        draw(folder / "given", rows)
        flags = ["--embeddings", folder / "given", "--split", "draw", "--out", folder / "features"]
        command = [sys.executable, "-m", "pipelines.encode", *map(str, flags)]
        start = time.perf_counter()
        with (folder / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            most = 0
            while process.poll() is None:
                most = max(most, peak(process.pid))
                time.sleep(LOOK)
            if process.returncode:
                log.seek(0)
                raise RuntimeError(f"`encode` failed:\n{log.read()[-4000:]}")
        return Run(rows, most / 1024, time.perf_counter() - start)


def peak(pid: int) -> int:
    """Kibibytes. What `wait4` says would count this process too, which was there before `exec`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def slope(runs: list[Run]) -> float:
    """Bytes that a row more takes: the line through the smallest and the largest run."""
    least, most = runs[0], runs[-1]
    return (most.mebibytes - least.mebibytes) * 2**20 / (most.rows - least.rows)


def section(folder: Path) -> list[str]:
    """The page's part; nothing where no two runs were measured."""
    if not (folder / FILE).is_file():
        return []
    runs = [Run(**one) for one in read_json(folder / FILE)]
    if len(runs) < 2:
        return []
    a_row = slope(runs)
    goal = runs[-1].mebibytes + (GOAL - runs[-1].rows) * a_row / 2**20
    ahead = f" At {GOAL:,} rows that makes {goal:,.0f} MiB." if runs[-1].rows < GOAL else ""
    return [
        "## Memory of finished embeddings",
        "",
        "Written by `python -m benchmarks.embeddings --rows "
        f"{' '.join(str(run.rows) for run in runs)}`:",
        f"`encode --embeddings` of vectors {WIDTH} wide in half precision, with a key and a class",
        f"name each. A row more takes {a_row:.1f} bytes.{ahead}",
        "",
        "| rows | vectors, MiB | largest resident set, MiB | seconds |",
        "|---|---|---|---|",
        *(
            f"| {run.rows:,} | {run.rows * WIDTH * 2 / 2**20:,.0f} | {run.mebibytes:,.0f} "
            f"| {run.seconds:,.0f} |"
            for run in runs
        ),
        "",
    ]


def main(args: Args) -> None:
    runs: list[Any] = []
    for rows in sorted(args.rows):
        runs.append(asdict(measure(rows, args.folder)))
        print(runs[-1], flush=True)
        write_json(HERE / FILE, runs)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
