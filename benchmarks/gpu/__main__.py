"""`python -m benchmarks.gpu [--minutes 8] [--parts equality ...]`: what only a card can tell.

Flows in: one NVIDIA card; without one, everything runs on the CPU, tiny, to its end. Flows out: one
table, and one JSON file. Each part runs in a process of its own, so that what breaks one (too
little memory, a CUDA context that died, a part that hangs) ends it alone, and what it had measured
by then stays. No part needs a network.

It runs from a checkout, nothing installed: `PYTHONPATH=. python -m benchmarks.gpu`. All parts need
torch 2.11 and numpy, transformers, peft, safetensors, tokenizers, pyarrow, pillow, simplejpeg; the
part `search` also ray[data,train,tune], optuna, tyro, tqdm, scipy. A part that misses one says so,
the others run. For a machine without a network, `pip download --only-binary=:all: --dest wheels
--python-version 3.12 --platform manylinux2014_x86_64 simplejpeg` elsewhere, and there
`pip install --no-index --target site wheels/*.whl`, with `site` on `PYTHONPATH`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu.sheet import FILE, Line, render, write

HERE = Path(__file__).parent
TERMS = 10.0  # seconds that a part which was told to end may take


@dataclass(frozen=True)
class Part:
    module: str
    share: float  # of the time: what earlier parts leave over is divided among those to come
    needs: tuple[str, ...] = ()


ENGINE = ("numpy", "transformers", "peft", "safetensors", "tokenizers", "pyarrow", "PIL")
BASE = (*ENGINE, "simplejpeg")
PARTS: dict[str, Part] = {
    "equality": Part("benchmarks.gpu.equality", 80, BASE),
    "search": Part("benchmarks.gpu.default_search", 120, (*BASE, "ray", "optuna", "tyro", "tqdm")),
    "waits": Part("benchmarks.gpu.waits", 25, BASE),
    "memory": Part("benchmarks.gpu.memory", 35, BASE),
    "together": Part("benchmarks.gpu.together", 80, BASE),
    "replayed": Part("benchmarks.gpu.replayed", 60, BASE),
    "speed": Part("benchmarks.gpu.speed", 45, BASE),
    "precision": Part("benchmarks.gpu.precision", 35, BASE),
}


@dataclass(frozen=True)
class Args:
    minutes: float
    parts: tuple[str, ...]
    out: Path | None


def main(args: Args) -> int:
    """The exit status: 1 where a line failed."""
    started, machine = time.monotonic(), this_machine()
    device = "cuda" if machine["card"] != "none" else "cpu"
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n", flush=True)
    lines: list[Line] = []
    left = list(args.parts)
    while left:
        name, share = left[0], PARTS[left[0]].share / sum(PARTS[one].share for one in left)
        seconds = share * (60 * args.minutes - (time.monotonic() - started))
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        lines += run(name, device, seconds)
        left.pop(0)
        machine |= {"seconds": round(time.monotonic() - started)}
        if args.out is not None:  # what was measured by now is there, whatever comes
            write(
                args.out,
                machine,
                lines + [Line("all of it", why="not reached", part=o) for o in left],
            )
    print("", *render(machine, lines), sep="\n")
    if args.out is not None:
        print(f"wrote {args.out}")
    return int(any(line.verdict == "fail" for line in lines))


def this_machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    import torch

    there = torch.cuda.is_available()
    driver = "unknown" if there else "none"
    with contextlib.suppress(OSError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        driver = found.stdout.split("\n")[0].strip() or driver
    return {
        "card": torch.cuda.get_device_name(0) if there else "none",
        "driver": driver,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "Python": platform.python_version(),
        "size": "that of CLIP" if there else "tiny, on a CPU: only to see that it runs",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": 0,
    }


def run(name: str, device: str, seconds: float) -> list[Line]:
    """A part in a process of its own, ended after `seconds`."""
    if missing := [f"`{one}`" for one in PARTS[name].needs if find_spec(one) is None]:
        return [Line("all of it", why=f"{', '.join(missing)} missing", part=name)]
    if seconds < 1:
        return [Line("all of it", why="out of time", part=name)]
    with TemporaryDirectory(prefix="cliptune-gpu-") as folder:
        found = Path(folder, "lines.jsonl")
        words = (sys.executable, "-m", "benchmarks.gpu.part", PARTS[name].module, device)
        process = subprocess.Popen([*words, str(found)], start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        rows = found.read_text().splitlines() if found.is_file() else []
    lines = [replace(Line(**json.loads(row)), part=name) for row in rows]
    if code is None:
        lines.append(Line("the rest", why=f"out of time after {seconds:.0f} s", part=name))
    elif code and not any(line.broken for line in lines):
        lines.append(Line("the rest", why=f"ended with {code}", broken=True, part=name))
    return lines


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started."""
    for sent, wait in ((signal.SIGTERM, TERMS), (signal.SIGKILL, TERMS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)


def parse(words: Sequence[str]) -> Args:
    import torch

    there = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE.parent / FILE if there else None,
        help=f"the JSON file; by default benchmarks/{FILE} on a card, none on a CPU",
    )
    found = parser.parse_args(words)
    return Args(found.minutes, tuple(found.parts), found.out)


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
