"""Turn what a run's adapters learned down or up, without training, and look at both goals on val.

Flows in: a run folder, chosen on val. Flows out: sweep.json and sweep.html in it; with `--take`, a
run folder of its own whose checkpoint stands at one share. The test split stays sealed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pipelines.console import done, nothing_to_do, say, word
from pipelines.ranges import Range, check_ranges
from pipelines.runs.outcome import stands, write_outcome
from pipelines.workspace import workspace
from trainables.errors import ConfigError, DataError
from trainables.files import (
    read_json,
    sha256_json,
    understood,
    write_bytes,
    write_hashed,
    write_json,
)

if TYPE_CHECKING:
    from pipelines.runs.contestants import Contest, Contestant
    from pipelines.sweep.points import Bench, Curve, Point

FORMAT = "cliptune-sweep-1"


@dataclass(frozen=True)
class Args:
    run: Path
    """Folder of a study (the best of each adapter is swept) or of a single training run."""
    shares: Annotated[tuple[float, ...], Range(0, 100)] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    """How much of what was learned counts: 0 is where training began, 1 what it found."""
    retain: tuple[Path, ...] = ()
    """Draws of classes that training never saw. Default: those of the run, if it has any."""
    take: Annotated[float | None, Range(0, 100)] = None
    """Write the adapter at this share as a run folder, for `cliptune evaluate` and `export`."""
    adapter: str = ""
    """Which adapter to take. Default: the one chosen on val."""
    out: Path | None = None
    """Folder to write what is taken to."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    from pipelines.runs.contestants import read_contest
    from pipelines.sweep.points import check_task
    from trainables.features.few_shot import check_retain

    if not args.shares:
        raise ConfigError("`--shares` must name at least one share.")
    if (args.take is None) != (args.out is None):
        raise ConfigError("`--take` and `--out` go together: which share, and where to write it.")
    contest = read_contest(args.run, only_best=False)
    check_task(args.run, contest.task)
    if args.retain:
        retain = check_retain(contest.features, args.retain, contest.draw, contest.task)
        contest = dataclasses.replace(contest, retain=tuple(retain))
    if args.take is None or args.out is None:
        _sweep(args, contest)
    else:
        _take(args, contest, args.take, args.out.absolute())


def _open(contest: Contest) -> Bench:
    from pipelines.sweep.points import Bench
    from trainables.features.features import backbone_of
    from trainables.hardware import default_device

    return Bench(contest, backbone_of(contest.features, default_device()))


def _sweep(args: Args, contest: Contest) -> None:
    from pipelines.sweep.points import turnable
    from pipelines.sweep.sweep_page import render

    trained = turnable(contest)
    if not trained:
        raise DataError(f"`{args.run}` has no trained adapter: there is nothing to turn.")
    shares = sorted(set(args.shares))
    keys = [draw.key for draw in contest.retain]
    who = {one.name: one.identity() for one in trained}
    inputs = sha256_json({"adapters": who, "shares": shares, "retain": keys})
    path, page = args.run / "sweep.json", args.run / "sweep.html"
    then = f"cliptune sweep --run {word(args.run)} --take SHARE --out RUN"
    if stands(path, FORMAT, inputs):
        nothing_to_do(path, then)
        return
    bench = _open(contest)
    curves = [bench.curve(one, shares) for one in trained]
    zero_shot = bench.zero_shot()
    for curve in curves:
        say(_sentence(curve, contest.metric, zero_shot))
    write_bytes(page, render(args.run, contest.metric, curves, zero_shot).encode())
    write_outcome(path, _result(contest, curves, zero_shot), inputs, [page])
    done([path, page], then)


def _result(contest: Contest, curves: list[Curve], zero_shot: Point) -> dict[str, Any]:
    from trainables.metrics.balance import RULE

    return {
        "format": FORMAT,
        "metric": f"val/{contest.metric}",
        "rule": RULE if zero_shot.retained is not None else "the highest metric",
        "retain": [f"{draw.dataset}, {draw.part}" for draw in contest.retain],
        "zero_shot": {"value": zero_shot.value, "retained": zero_shot.retained},
        "adapters": [
            {
                "name": curve.name,
                "trial": curve.trial,
                "best": dataclasses.asdict(curve.best(contest.metric)),
                "points": [dataclasses.asdict(point) for point in curve.points],
            }
            for curve in curves
        ],
    }


def _sentence(curve: Curve, metric: str, zero_shot: Point) -> str:
    def words(point: Point) -> str:
        if zero_shot.retained is None:
            return f"{point.value:.4f}"
        kept = "not applicable" if point.retained is None else f"{point.retained:.4f}"
        return f"{point.value:.4f}, retained {kept}"

    best = curve.best(metric)
    full = next((point for point in curve.points if point.share == 1), None)
    also = f"share 1: {words(full)}; " if full is not None and full is not best else ""
    return (
        f"{curve.name}: best on val at share {best.share:g}: val/{metric} {words(best)} "
        f"({also}zero-shot: {words(zero_shot)})"
    )


def _take(args: Args, contest: Contest, share: float, out: Path) -> None:
    """Write a folder as `cliptune train` leaves it, with the adapter at `share`."""
    from pipelines.sweep.points import choose
    from trainables.training.integrity import verify

    one = choose(contest, args.adapter)
    assert one.folder is not None
    source = one.folder.absolute()
    about = _about(args) | {"share": share, "source": str(source)}
    about["source_sha256"] = one.identity()
    then = f"cliptune evaluate --run {word(args.out)}"
    path = out / "run.json"
    if path.exists():
        with understood(path):
            same = {**read_json(path), "sha256": ""} == {**about, "sha256": ""}
        if same:
            verify(out / "best")
            nothing_to_do(out / "best", then)
            return
    if out.exists() and any(out.iterdir()):
        raise DataError(f"`{out}` holds another run, or something else: give another `--out`.")
    with workspace(out) as folder:
        _write(one, _open(contest), share, folder)
        write_hashed(folder / "run.json", about)
    done([out / "best", path], then)


def _about(args: Args) -> dict[str, Any]:
    """The contents of `run.json`, as `cliptune train` would write it on the same data."""
    from trainables.features.few_shot import about_draws

    name = "study.json" if (args.run / "study.json").is_file() else "run.json"
    found = read_json(args.run / name)
    names = ("features", "features_key", "metric", "draw", "draw_key", "retain", "retain_keys")
    about = {"format": "cliptune-run-1"} | {key: found[key] for key in names if key in found}
    return about | about_draws(None, args.retain)


def _write(one: Contestant, bench: Bench, share: float, out: Path) -> None:
    from trainables.config import to_json
    from trainables.training.checkpoint import save_checkpoint
    from trainables.training.interpolation import at
    from trainables.training.measure import examine

    assert one.folder is not None
    adapter, start = bench.load(one)
    row = read_json(one.folder / "best" / "state.json")["row"]
    with at(adapter, share, start):
        row = {name: value for name, value in row.items() if not name.startswith("val/")}
        found = examine(adapter, bench.val)
        row |= {f"val/{name}": value for name, value in found.metrics.items()}
        save_checkpoint(out / "best", adapter, {"row": row}, calibration=found.calibration())
    write_json(out / "config.json", to_json(adapter.train_config))
    write_bytes(out / "metrics.jsonl", (json.dumps(row) + "\n").encode())


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("sweep")
