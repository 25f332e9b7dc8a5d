"""The whole line on a drawn data set, each command as you would type it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.console import done, say
from pipelines.typed import command

BACKBONE = Path(__file__).parent / "clip"


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/demo")
    """Folder for the drawn pictures, the shards, the features and the study."""
    trials: int = 12
    """Trials of the search."""
    epochs: int = 6
    """Epochs of a trial that is never stopped early."""
    adapter: tuple[str, ...] = ("soft_prompt", "lora")
    """Adapters to search over."""
    seed: int = 0
    """Of the pictures and of the search."""


def run(args: Args) -> None:
    from pipelines.demo.draw import draw

    started = time.monotonic()
    index = args.out / "data" / "dataset.json"
    if not index.exists():
        say("drawing scenes in a style and with words that the tiny CLIP has never seen ...")
        draw(index.parent, "shifted", train=1200, val=300, test=1000, seed=args.seed)
    shards, features, study = (args.out / name for name in ("shards", "features", "study"))
    _stage("shards", "--source", index, "--out", shards)
    _stage("encode", "--shards", shards, "--backbone", BACKBONE, "--out", features)
    _stage(
        *("tune", "--features", features, "--out", study, "--adapter", *args.adapter),
        *("--trials", args.trials, "--epochs", args.epochs, "--seed", args.seed),
    )
    _stage("evaluate", "--run", study)
    _stage("report", "--run", study)
    say(f"\nthe whole line took {time.monotonic() - started:.0f} s.")
    done([study / "report.html"], f"open {study / 'report.html'}, then the README's own-data lines")


def _stage(*words: object) -> None:
    """Run one command; its failure is ours."""
    if code := command(*words):
        sys.exit(code)
