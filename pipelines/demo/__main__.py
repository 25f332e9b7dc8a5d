"""The whole line on a drawn data set, each command as you would type it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pipelines.console import done, say
from pipelines.ranges import Range, check_ranges
from pipelines.typed import run_stage
from trainables.errors import ConfigError, unknown

BACKBONE = Path(__file__).parent / "clip"


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/demo")
    """Folder for the drawn pictures, the shards, the features and the study."""
    trials: Annotated[int, Range(1)] = 12
    """Trials of the search."""
    epochs: Annotated[int, Range(1)] = 6
    """Epochs of a trial that is never stopped early."""
    adapter: tuple[str, ...] = ("soft_prompt", "lora")
    """Adapters to search over."""
    seed: Annotated[int, Range(0)] = 0
    """Of the pictures and of the search."""
    classes: bool = False
    """Draw things of ten colours in two styles instead, and run the arena on them."""
    captioner: bool = False
    """Let a tiny language model speak about the scenes: two captioners, half of the trials each."""
    clips: bool = False
    """Draw short clips in which one thing moves, and caption them with and without their order."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.classes + self.captioner + self.clips > 1:
            raise ConfigError("`--classes`, `--captioner` and `--clips` are three demos: give one.")


def run(args: Args) -> None:
    from search_spaces.registry import SPACES

    started = time.monotonic()
    for name in args.adapter:  # before anything is drawn
        if name not in SPACES:
            raise ConfigError(unknown("adapter", name, SPACES))
    if args.classes:
        last = _classes(args)
    elif args.clips:
        last = _clips(args)
    elif args.captioner:
        last = _captioner(args)
    else:
        last = _captions(args)
    say(f"\nthe whole line took {time.monotonic() - started:.0f} s.")
    done([last], f"open {last}, then the README's own-data lines")


def _scenes(args: Args) -> Path:
    """The scenes' features."""
    from pipelines.demo.drawings import draw

    index = args.out / "data" / "dataset.json"
    if not index.exists():
        say("drawing scenes in a style and with words that the tiny CLIP has never seen ...")
        draw(index.parent, "shifted", train=1200, val=300, test=1000, seed=args.seed)
    shards, features = args.out / "shards", args.out / "features"
    run_stage("shards", "--source", index, "--out", shards)
    run_stage("encode", "--shards", shards, "--backbone", BACKBONE, "--out", features)
    return features


def _captions(args: Args) -> Path:
    features, study = _scenes(args), args.out / "study"
    run_stage(
        *("tune", "--features", features, "--out", study, "--adapter", *args.adapter),
        *("--trials", args.trials, "--epochs", args.epochs, "--seed", args.seed),
    )
    run_stage("evaluate", "--run", study)
    run_stage("report", "--run", study)
    return study / "report.html"


def _classes(args: Args) -> Path:
    from pipelines.demo.drawings import draw_classes
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


def _captioner(args: Args) -> Path:
    features = _scenes(args)
    kinds = {"mlp-tuned": ("mlp", "full"), "transformer-frozen": ("transformer", "frozen")}
    runs = [args.out / name for name in kinds]
    for run, (mapper, mode) in zip(runs, kinds.values(), strict=True):
        run_stage(
            *("tune", "--features", features, "--out", run, "--adapter", "prefix_captioner"),
            *("--set", f"adapter.mapper={mapper}", f"adapter.lm_mode={mode}"),
            *("--trials", max(1, args.trials // 2), "--epochs", args.epochs, "--seed", args.seed),
        )
    run_stage("evaluate", "--run", runs[0], "--beside", runs[1])
    run_stage("report", "--run", runs[0])
    return runs[0] / "report.html"


def _clips(args: Args) -> Path:
    from pipelines.demo.motion import draw_clips

    index = args.out / "clips" / "clips.jsonl"
    if not index.exists():
        say("drawing clips in which one thing moves, grows, shrinks or stays ...")
        draw_clips(index.parent, train=1000, val=200, test=600, seed=args.seed)
    shards, features = args.out / "clip-shards", args.out / "clip-features"
    run_stage("shards", "--source", index, "--out", shards)
    run_stage(
        *("encode", "--shards", shards, "--backbone", BACKBONE, "--out", features, "--frames", 8)
    )
    runs = [args.out / f"clips-{pooling}" for pooling in ("attention", "mean")]
    for run, pooling in zip(runs, ("attention", "mean"), strict=True):
        run_stage(
            *("train", "--features", features, "--out", run, "--adapter", "prefix_captioner"),
            *("--set", f"adapter.pooling={pooling}", "optim.lr=1e-3", "batch_size=32"),
            *("adapter.decoding=greedy", f"epochs={2 * args.epochs}", f"seed={args.seed}"),
        )
    run_stage("evaluate", "--run", runs[0], "--beside", runs[1])
    run_stage("report", "--run", runs[0])
    return runs[0] / "report.html"
