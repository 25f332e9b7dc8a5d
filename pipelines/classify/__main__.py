"""Put images into classes: those that a run was trained on, or others that you name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from pipelines.console import say
from pipelines.ranges import Range, check_ranges
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from trainables.metrics.calibration import Calibration

SHOWN = 8  # classes of a set that are printed


@dataclass(frozen=True)
class Args:
    images: Positional[tuple[Path, ...]]
    """Image files; a folder stands for the images in it, at any depth. Or finished embeddings:
    files or folders of such, or a store that was made of them."""
    run: Path | None = None
    """Folder of a study or of a training run: its best adapter decides."""
    backbone: str = ""
    """Instead of a run: a CLIP as it is, a directory in Hugging Face layout or a Hub id."""
    revision: str | None = None
    """The commit (40 hex digits) of a Hub id."""
    classes: tuple[str, ...] = field(default_factory=tuple)
    """Names of classes to choose among, instead of the run's own."""
    template: str = ""
    """What stands around a name of `--classes`. Default: the run's own, or "a photo of a {}."."""
    top: Annotated[int, Range(1)] = 3
    """Classes shown for each image."""
    confidence: float | None = None
    """Instead of the likeliest classes a set for each image, which holds the right one for at least
    this share of images like val's: 0.9. For a run, among its own classes."""
    sets: Literal["split", "adaptive", "class-wise"] = "split"
    """How the sets of `--confidence` are made: `split` has the fewest classes on average and may
    be empty, `adaptive` grows where an image is hard, `class-wise` holds for each class."""
    json: bool = False
    """Print JSON and nothing else."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    if not args.images:
        raise ConfigError(
            "`cliptune classify` takes image files, got none: they come before `--classes`."
        )
    from pipelines.classify.answers import calibration_of, check_template, choices, classify
    from pipelines.use.files import Faults, find
    from pipelines.use.model import Source, open_model

    check_template(args.classes, args.template)
    source, faults = Source(args.run, args.backbone, args.revision), Faults()
    model = open_model(source, "classification", "retrieval")
    classes = choices(model, args.classes, args.template)
    calibration = calibration_of(model, not args.classes, args.confidence, args.sets)
    how = (calibration, args.confidence, args.sets)
    rows = classify(model, find(args.images, faults), classes, args.top, faults, *how)
    if args.json:
        say(json.dumps(rows + faults.as_json(), indent=1))
    else:
        for row in rows:
            say(f"{row['path']}  {_line(row)}")
        say(_meaning(args, calibration, len(classes)))
        say(f"next: {source.then}")
    faults.leave()


def _line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    best = ", ".join(
        f"{one['name']} {one.get('probability', one.get('softmax')):.3f}" for one in row["classes"]
    )
    if "set" not in row:
        return best
    if row["none"]:
        return f"none of these: {row['none']} (nearest: {best})"
    more = f" and {len(row['set']) - SHOWN} more" if len(row["set"]) > SHOWN else ""
    return f"{{{', '.join(row['set'][:SHOWN])}{more}}} {best}"


def _meaning(args: Args, calibration: Calibration | None, classes: int) -> str:
    """What the numbers printed are, in a sentence."""
    from trainables.metrics.conformal import least

    if calibration is None:
        return "The numbers are shares of a softmax, not probabilities: no val calibrated them."
    if args.confidence is None:
        return (
            f"The numbers are probabilities, calibrated on {len(calibration):,} val images; "
            "`cliptune evaluate` says how far to believe them."
        )
    more = ""
    if len(calibration) < least(args.confidence):
        more = f" None can leave a class out: that takes {least(args.confidence)} val images."
    elif calibration.rejects(classes, args.confidence, args.sets):
        more = (
            f" That allows for one in {len(calibration) + 1:,} such images, which is taken for "
            "unlike val."
        )
    return (
        f"The sets hold the right class for at least {100 * args.confidence:g} % of images like "
        f"the {len(calibration):,} of val ({args.sets} conformal sets).{more}"
    )


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("classify")
