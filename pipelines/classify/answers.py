"""Which classes images are of, as an adapter sees it.

Flows in: a model, image files and the classes to choose among. Flows out: a row an image with its
likeliest classes and, at a confidence, the set that holds the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.use.embedding import embed_files
from pipelines.use.files import Faults
from pipelines.use.model import Model
from pipelines.use.queries import classes_of
from trainables.errors import ConfigError
from trainables.features.classes import Classes
from trainables.features.split import SplitFeatures
from trainables.metrics.calibration import Calibration, Kind
from trainables.training.predict import score

UNLIKE = "its best score is below that of every val image"
UNLIKELY = "no class is likely enough"


def check_template(names: Sequence[str], template: str) -> None:
    if template and not names:
        raise ConfigError("`--template` is for `--classes`: a run's own classes have their words.")


def choices(model: Model, names: Sequence[str] = (), template: str = "") -> Classes:
    """The classes to choose among, which the adapter must be able to tell apart; without `names`
    those that it was trained on."""
    check_template(names, template)
    own = model.classes
    if not names:
        if own is None:
            raise ConfigError(
                f"`--classes` must name what to choose among: `{model.name}` was "
                "trained without classes."
            )
        return own
    if not model.adapter.open_classes:
        known = f"{len(own)} classes" if own else "classes"
        raise ConfigError(
            f"`--classes` cannot be asked of `{model.name}`: it knows only the {known} that it was "
            "trained on. Leave `--classes` out, or give a run of another adapter."
        )
    return classes_of(names, template or (own.template if own else ""))


def calibration_of(
    model: Model, own: bool, confidence: float | None = None, kind: Kind = "split"
) -> Calibration | None:
    """What val said of the model's scores, where its `own` classes are asked for. Raises where a
    `confidence` needs it and it is not there."""
    found = model.adapter.calibration if own else None
    if confidence is None:
        if kind != "split":
            raise ConfigError("`--sets` is how the sets of `--confidence` are made: give both.")
        return found
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"`--confidence` must be from 0.5 to below 1, got {confidence:g}.")
    if found is None:
        raise ConfigError(
            f"`--confidence` needs val images of the classes, which `{model.name}` does not have "
            "here: give a run that was trained on classes with val, and no `--classes`."
        )
    return found


def classify(
    model: Model,
    paths: list[Path],
    classes: Classes,
    top: int,
    faults: Faults,
    calibration: Calibration | None = None,
    confidence: float | None = None,
    kind: Kind = "split",
) -> list[dict[str, Any]]:
    """Each good image with its `top` likeliest classes and, at a confidence, its set."""
    rows: list[dict[str, Any]] = []
    for names, data in embed_files(model.adapter, paths, faults, "classify"):
        found = classified(model, data, classes, top, calibration, confidence, kind)
        rows += [{"path": str(path)} | row for path, row in zip(names, found, strict=True)]
    return rows


def classified(
    model: Model,
    data: SplitFeatures,
    classes: Classes,
    top: int,
    calibration: Calibration | None = None,
    confidence: float | None = None,
    kind: Kind = "split",
) -> list[dict[str, Any]]:
    """The same for images that are embedded."""
    word = "probability" if calibration else "softmax"
    scale = calibration.scale if calibration else model.adapter.tau
    scores = score(model.adapter, data, classes)  # (N, C)
    shares, labels = (scale * scores).softmax(-1).sort(dim=-1, descending=True, stable=True)
    rows: list[dict[str, Any]] = [
        {"classes": [{"name": classes.names[n], word: p} for n, p in best]}
        for best in _pairs(labels, shares, top)
    ]
    if calibration is not None and confidence is not None:
        sets = calibration.sets(scores, confidence, kind).gather(1, labels)
        unlike = calibration.unlike_val(scores, confidence, kind).tolist()
        for row, label, inside, strange in zip(rows, labels, sets, unlike, strict=True):
            own = [classes.names[n] for n in label[inside].tolist()]
            row |= {"set": own, "none": UNLIKE if strange else "" if own else UNLIKELY}
    return rows


def _pairs(labels: Tensor, shares: Tensor, top: int) -> list[list[tuple[int, float]]]:
    """The first `top` of each row (N, C)."""
    rows = zip(labels[:, :top].tolist(), shares[:, :top].tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]
