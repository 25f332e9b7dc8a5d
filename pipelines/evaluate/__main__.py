"""Open the sealed test split: the best adapters beside their baseline, under one protocol.

The only reader of test. Flows in: a run's checkpoints, chosen on val. Flows out: result.json, in
which every opening of the test split is listed; each one is logged before it happens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipelines.console import done, nothing_to_do, say, word
from pipelines.ranges import Range, check_ranges
from pipelines.runs.outcome import measured
from trainables.data.store import read_manifest
from trainables.errors import DataError
from trainables.files import now, sha256_json, write_hashed

if TYPE_CHECKING:
    from pipelines.runs.contestants import Contest
    from trainables.adapters.base import Adapter
    from trainables.data.shards import Seal, ShardSet
    from trainables.features.split import SplitFeatures
    from trainables.models.backbone import Backbone

FORMAT = "cliptune-result-2"
FEW = 64  # images whose embedding needs no bar


@dataclass(frozen=True)
class Args:
    run: Path
    """Folder of a study (`cliptune tune`), of a single training run (`cliptune train`), or of an
    arena."""
    adapters: Literal["per-adapter", "best"] = "per-adapter"
    """Measure the best of each adapter, or only the best of all. What needs no training (zero-shot,
    or the nearest caption) is always beside it."""
    bootstrap: Annotated[int, Range(100, 100_000)] = 2000
    """Resamples of the test images behind every interval."""
    batch_size: Annotated[int, Range(1)] = 256
    """Images or captions embedded at a time; a question of memory, not of results."""
    gallery: Annotated[int, Range(0)] = 8
    """Captions shown with their nearest images before and after; of captioners, images shown with
    what they say."""
    beside: tuple[Path, ...] = ()
    """More runs on the same features, whose best is measured beside this one's and compared with
    it, such as another captioner."""
    draw: Path | None = None
    """A draw whose classes to measure instead of those trained on, such as the new ones after
    training on the base ones. Written to result-<part>.json."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    if (args.run / "plan.json").is_file():
        _evaluate_arena(args)
        return
    from pipelines.evaluate import calibration
    from pipelines.evaluate.openings import damages
    from pipelines.evaluate.standings import retention, table
    from pipelines.runs.contestants import check_open, join, read_contest
    from trainables.features.features import backbone_of
    from trainables.hardware import default_device

    started = time.monotonic()
    contest = read_contest(args.run, args.adapters == "best", args.draw)
    contest = join(contest, args.run, args.beside)
    shards, made_with = _data(contest)
    inputs = _identity(args, contest, shards, made_with)
    part = f"-{contest.others.part}" if contest.others else ""
    path = args.run / f"result{part}.json"
    then = f"cliptune report --run {word(args.run)}"
    if measured(path, FORMAT, inputs):
        nothing_to_do(path, then)
        return
    backbone = backbone_of(contest.features, default_device())
    adapters = contest.load(backbone)
    check_open(contest, adapters)
    calibration.calibrate_rest(contest, adapters)
    openings = _log_opening(args, contest, shards)
    result = _measure(args, contest, shards, backbone, adapters)
    result |= {"inputs": inputs, "test_openings": openings, "seconds": time.monotonic() - started}
    result["warnings"] += (damaged := damages(openings))
    result["protocol"] += damaged
    write_hashed(path, result)
    for line in (*table(result["rows"], contest.metric), *calibration.table(result["rows"])):
        say(line)
    if kept := retention(result["rows"]):
        say(kept)
    for warning in result["warnings"]:
        say(f"warning: {warning}")
    done([path], then)


def _evaluate_arena(args: Args) -> None:
    """All cells of an arena, as `cliptune arena` asks for it at its end."""
    from pipelines.arena.cells import FORMAT as ARENA
    from pipelines.evaluate.arenas import identity, measure_arena
    from pipelines.evaluate.openings import damages, log_opening
    from trainables.data.shards import Seal

    path, inputs = args.run / "arena.json", identity(args.run)
    then = "cliptune arena, as before: it writes the page"
    if measured(path, ARENA, inputs):
        nothing_to_do(path, then)
        return
    opening = {"at": now(), "by": "cliptune evaluate", "inputs": inputs}
    openings = log_opening(args.run, opening)
    for warning in damages(openings):
        say(f"warning: {warning}")
    arena = measure_arena(args.run, Seal(f"cliptune evaluate --run {args.run}"))
    write_hashed(path, arena | {"inputs": inputs, "test_openings": openings})
    done([path], then)


def _data(contest: Contest) -> tuple[ShardSet, dict[str, Any]]:
    """The shards that the run's features were made of, unchanged since, and their backbone."""
    from trainables.data.shards import ShardSet

    manifest = read_manifest(contest.features)
    shards = ShardSet.open(manifest["shards"])
    if shards.digest != manifest["shards_sha256"]:
        raise DataError(
            f"`{shards.folder}` changed since `{contest.features}` was made of it: the adapters "
            "were trained on other data. Encode and tune again, or restore the shards."
        )
    if "test" not in shards.splits:
        raise DataError(f"`{shards.folder}` has no test split: there is nothing to measure on.")
    return shards, dict(manifest["backbone"])


def _identity(args: Args, contest: Contest, shards: ShardSet, made_with: dict[str, Any]) -> str:
    """Equal for two calls that would measure the same; checkpoints are verified on the way."""
    from trainables.metrics.spice import why_no_spice

    return sha256_json(
        {
            "rows": {c.name: [c.identity(), c.selected] for c in contest.contestants},
            "data": shards.digest,
            "backbone": made_with["fingerprint"],
            "args": [args.bootstrap, args.gallery],
            **({"draw": contest.others.key} if contest.others else {}),
            **({"spice": not why_no_spice()} if contest.task == "captioning" else {}),
        }
    )


def _log_opening(args: Args, contest: Contest, shards: ShardSet) -> list[dict[str, Any]]:
    """All openings so far and the one about to happen, which is on disk before it does."""
    from pipelines.evaluate.openings import log_opening

    names = [one.name for one in contest.contestants]
    opening = {"at": now(), "by": "cliptune evaluate", "rows": names, "digest": shards.digest}
    if contest.others:
        opening |= {"part": contest.others.part, "draw": contest.others.key}
    openings = log_opening(args.run, opening)
    for run in args.beside:
        log_opening(run, opening)
    times = sum(one.get("draw") == opening.get("draw") for one in openings)
    if times > 1:
        say(
            f"warning: with this one, the test split has been opened {times} times for "
            "this run. Choosing between openings by what was seen is choosing on test."
        )
    return openings


def _open(
    args: Args,
    contest: Contest,
    shards: ShardSet,
    backbone: Backbone,
    adapters: list[Adapter[Any]],
    seal: Seal,
) -> SplitFeatures:
    """The test split's features; of classes, those of the images to measure, with their labels."""
    from tqdm import tqdm

    from trainables.features.features import embed_split
    from trainables.features.manifest import frames_of

    doing = "reading" if shards.embedded else "embedding"
    images = shards.splits["test"]["images"]
    say(f"{doing} the {images:,} images of test ...")
    with tqdm(
        total=images, unit="img", desc="embed", disable=shards.embedded or images <= FEW
    ) as bar:
        data = embed_split(
            backbone,
            shards,
            "test",
            seal=seal,
            pixels=any(adapter.image_block is not None for adapter in adapters),
            batch_size=args.batch_size,
            seen=frames_of(contest.features),
            done=bar.update,
        )
    if contest.measured is None:
        return data
    rows = shards.rows("test", ["id", "label"], seal)
    return contest.measured.among(data, rows, contest.draw)


def _measure(
    args: Args,
    contest: Contest,
    shards: ShardSet,
    backbone: Backbone,
    adapters: list[Adapter[Any]],
) -> dict[str, Any]:
    from tqdm import tqdm

    from pipelines.evaluate.examples import examples
    from pipelines.evaluate.protocol import caveats
    from pipelines.evaluate.protocols import protocol_of
    from pipelines.evaluate.standings import pairs, standings
    from pipelines.runs.provenance import about, hardware, versions
    from trainables.data.shards import Seal

    seal = Seal(f"cliptune evaluate --run {args.run}")
    whole = _open(args, contest, shards, backbone, adapters, seal)
    data = whole.one_row_an_image()
    protocol = protocol_of(contest, data, backbone, adapters, args.bootstrap)
    compared = contest.task == "captioning" or bool(args.beside)  # each with each
    models = [
        protocol.of(adapter, args.batch_size)
        for adapter in tqdm(adapters, "measuring", unit="adapter")
    ]
    names = [one.name for one in contest.contestants]
    shown = examples(contest, models, data, shards, seal, args.gallery)
    between = pairs(names, models, protocol) if compared else []
    described = about(shards, whole, data)
    warning = described["duplicated_image_rows"]["warning"]
    warnings = [warning] if warning else []
    warnings += caveats(protocol.bootstrap, max(len(models) - 1, len(between)))
    return {
        "format": FORMAT,
        "created": now(),
        "data": described,
        "backbone": {
            "name": backbone.name,
            "revision": backbone.revision,
            "fingerprint": backbone.fingerprint,
        },
        "metric": contest.metric,
        "baseline": adapters[0].train_config.name,
        "protocol": [
            *protocol.text(contest.metric),
            *contest.about_val(),
            *contest.about_others(),
            *warnings,
            *shown.pop("rule", []),
        ],
        "warnings": warnings,
        "rows": standings(contest, adapters, models, protocol),
        **({"pairs": between} if compared else {}),
        **shown,
        "versions": versions(),
        "hardware": hardware(),
    }


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("evaluate")
