"""`cliptune tune` with its defaults on the demo's scenes, to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line
from pipelines.demo.__main__ import BACKBONE
from pipelines.demo.drawings import draw
from trainables.data.store import find_store
from trainables.files import read_json

ROOT = Path(__file__).parents[2]


def measure(scale: Scale) -> Iterator[Line]:
    from pipelines.tune.study.study import open_study, states

    trials, epochs = (2, 1) if scale.small else (16, 3)
    images = {"train": 64, "val": 16} if scale.small else {"train": 1200, "val": 300}
    with TemporaryDirectory(prefix="cliptune-gpu-") as name:
        folder = Path(name)
        index = draw(folder / "data", "shifted", **images, test=1)
        stage("shards", "--source", index, "--out", folder / "shards")
        store = ("--shards", folder / "shards", "--backbone", BACKBONE, "--out", folder / "all")
        stage("encode", *store)
        started = monotonic()
        features, study = find_store(folder / "all"), folder / "study"
        stage(
            *("tune", "--features", features, "--out", study),
            *("--trials", trials, "--epochs", epochs),
        )
        yield Line(f"{trials} trials of {epochs} epochs", monotonic() - started, "s")
        counts = states(open_study(study))
        ended = counts["COMPLETE"] + counts["PRUNED"]
        yield Line("trials complete or stopped by ASHA", ended, least=trials)
        yield Line("trials failed", counts["FAIL"], most=0)
        widths = study / "fused.json"
        found = read_json(widths) if widths.is_file() else {}
        for adapter in ("soft_prompt", "lora"):
            what = f"{adapter}: trials that a worker found fastest together"
            if scale.small:
                yield Line(what, why="so few trials are never fused")
            else:
                own = found.get(adapter)
                if own is None:
                    yield Line(what, broken=True, why="none was found")
                else:
                    yield Line(what, own["width"], why=own["why"])


def stage(*words: object) -> None:
    """A command of cliptune; its last words are the error where it fails."""
    name, *flags = map(str, words)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{name}", *flags],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(f"`cliptune {name}` failed: {' '.join(said[-2:])}")
