"""The whole line on a drawn data set, each command as you would type it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.console import done, say
from pipelines.typed import run_stage

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
    classes: bool = False
    """Draw things of ten colours in two styles instead, and run the arena on them."""


def run(args: Args) -> None:
    started = time.monotonic()
    last = _classes(args) if args.classes else _captions(args)
    say(f"\nthe whole line took {time.monotonic() - started:.0f} s.")
    done([last], f"open {last}, then the README's own-data lines")


def _captions(args: Args) -> Path:
    from pipelines.demo.draw import draw

    index = args.out / "data" / "dataset.json"
    if not index.exists():
        say("drawing scenes in a style and with words that the tiny CLIP has never seen ...")
        draw(index.parent, "shifted", train=1200, val=300, test=1000, seed=args.seed)
    shards, features, study = (args.out / name for name in ("shards", "features", "study"))
    run_stage("shards", "--source", index, "--out", shards)
    run_stage("encode", "--shards", shards, "--backbone", BACKBONE, "--out", features)
    run_stage(
        *("tune", "--features", features, "--out", study, "--adapter", *args.adapter),
        *("--trials", args.trials, "--epochs", args.epochs, "--seed", args.seed),
    )
    run_stage("evaluate", "--run", study)
    run_stage("report", "--run", study)
    return study / "report.html"


def _classes(args: Args) -> Path:
    from pipelines.demo.draw import draw_classes
    from pipelines.demo.scenes import DOMAINS

    data = []
    for domain in DOMAINS:
        folder, shards = args.out / f"colours-{domain}", args.out / f"shards-{domain}"
        if not (folder / "split_zhou_colours.json").exists():
            say(f"drawing things of ten colours in the {domain} style ...")
            draw_classes(folder, domain, train=32, val=8, test=40, seed=args.seed)
        run_stage("shards", "--source", folder / "split_zhou_colours.json", "--out", shards)
        data.append(f"{domain}={shards}")
    arena = args.out / "arena"
    run_stage(
        *("arena", "--data", *data, "--backbone", BACKBONE, "--out", arena, "--trials", 3),
        *("--adapter", "zero_shot", "coop", "tip_adapter", "linear_probe", "--epochs", args.epochs),
        *("--protocol", "all", "base_to_new", "shift"),
    )
    return arena / "arena.html"
