"""`python -m benchmarks.gpu.part MODULE DEVICE FILE`: one part, in a process of its own.

Flows out: a line of JSON in FILE for each number, when it is known; an error is one too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line

OURS = ("benchmarks", "pipelines", "search_spaces", "trainables")


def main(module: str, device: str, path: Path) -> int:
    """The exit status: 1 where the part raised an error."""
    with path.open("a") as file:

        def put(line: Line) -> None:
            print(json.dumps(asdict(line)), file=file, flush=True)

        try:
            for line in import_module(module).measure(Scale(torch.device(device))):
                put(line)
        except ModuleNotFoundError as error:
            name = error.name or str(error)
            put(Line("the rest", why=f"`{name}` missing", broken=name.split(".")[0] in OURS))
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            put(Line("the rest", why=f"{type(error).__name__}: {said}", broken=True))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
