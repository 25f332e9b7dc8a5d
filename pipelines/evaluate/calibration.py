"""Probabilities and sets on the sealed split, as val calibrated them.

Flows in: scores (N, C) of labelled images, and the calibration of the adapter that gave them. Flows
out: how far its probabilities are to be believed, before and after the temperature, and the share
of images whose sets hold the right class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pipelines.runs.contestants import Contest
from trainables.adapters.base import Adapter
from trainables.errors import DataError
from trainables.features.features import open_features
from trainables.features.few_shot import measured
from trainables.metrics.calibration import KINDS, TIMES, Calibration
from trainables.metrics.calibration_error import (
    BINS,
    brier,
    calibration_error,
    error_by_chance,
    reliability,
)
from trainables.metrics.classification import hits, log_likelihood
from trainables.statistics.bootstrap import Bootstrap
from trainables.training.measure import examine

CONFIDENCE = 0.9  # of the sets that are measured


def calibrate_rest(contest: Contest, adapters: Sequence[Adapter[Any]], needed: bool = True) -> None:
    """Calibrate on val the models without a calibration: the baseline, and runs of older versions.
    A run that was trained without val stays without. So does, where calibration is not `needed`, a
    run whose val is gone. A run whose scores are not finite is refused."""
    rest = [adapter for adapter in adapters if adapter.calibration is None]
    if not rest or contest.draw is None or not contest.with_val:
        return
    try:
        val = open_features(contest.features, "val", rest[0].backbone)
    except DataError:
        if needed:
            raise
        return
    val = measured(val, contest.draw, ())
    for adapter in rest:
        adapter.calibration = examine(adapter, val).calibration()
        if adapter.calibration is None:
            raise diverged(adapter)


def diverged(adapter: Adapter[Any]) -> DataError:
    """The error to raise where an adapter's scores are not finite."""
    return DataError(
        f"`{adapter.train_config.name}` gives scores that are no numbers: its training diverged in "
        f"the last step. Train it with an `optim.lr` below {adapter.train_config.optim.lr:g}."
    )


@dataclass(frozen=True)
class Images:
    """The labelled images of a split, and how they are resampled."""

    labels: Tensor  # (N,)
    clusters: Tensor  # (N,)
    bootstrap: Bootstrap

    def mean(self, values: Tensor) -> dict[str, float]:
        """The mean of one value an image (N,), with its interval."""
        values = values.double()
        replicates = self.bootstrap.mean(values, self.clusters)
        return asdict(self.bootstrap.interval(float(values.mean()), replicates))


def about(
    scores: Tensor, images: Images, calibration: Calibration, same_classes: bool
) -> dict[str, Any]:
    """The calibration of similarities (N, C). Sets are of the classes that val had, and of no
    others."""
    found: dict[str, Any] = {
        "val_images": len(calibration),
        "scale": dict(zip(TIMES, (calibration.own_scale, calibration.scale), strict=True)),
    }
    for fitted, time in enumerate(TIMES):
        found[time] = _believed(scores, images, calibration, bool(fitted))
    if same_classes:
        found["confidence"] = CONFIDENCE
        found["sets"], found["without"] = [], []
        for kind in KINDS:
            try:
                for fitted, time in enumerate(TIMES):
                    sets = calibration.sets(scores, CONFIDENCE, kind, bool(fitted))
                    found["sets"].append({"kind": kind, "time": time} | _held(sets, images))
            except DataError as error:
                found["without"].append(str(error))
    return found


def _believed(
    scores: Tensor, images: Images, calibration: Calibration, fitted: bool
) -> dict[str, Any]:
    shares = calibration.probabilities(scores, fitted)
    confidences, right = shares.max(1).values, hits(scores, images.labels)
    scale = calibration.scale if fitted else calibration.own_scale
    return {
        "ece": calibration_error(confidences, right),
        "ece_by_chance": error_by_chance(confidences),
        "nll": images.mean(-log_likelihood(scores, images.labels, scale)),
        "brier": images.mean(brier(shares, images.labels)),
        "bins": [asdict(one) for one in reliability(confidences, right)],
    }


def _held(sets: Tensor, images: Images) -> dict[str, Any]:
    return {
        "coverage": images.mean(sets.gather(1, images.labels[:, None])[:, 0]),
        "size": images.mean(sets.sum(1)),
        "empty": float((~sets.any(1)).double().mean()),
    }


def text(adapters: Sequence[Calibration | None], same_classes: bool) -> list[str]:
    """The protocol of probabilities in sentences."""
    counts = {len(one) for one in adapters if one is not None}
    if not counts:
        return []
    lines = [
        "Probabilities are softmax(scale x scores): before, at the adapter's own scale, after, at "
        f"the one that fits the labels of {max(counts):,} val images best (Guo et al. 2017), as if "
        f"one more had been missed. ece is over {BINS} bins of the likeliest class; beside it "
        "stands what it stays below in 95 of 100 cases where the probabilities are true (Broecker "
        "& Smith 2007).",
    ]
    if same_classes:
        lines.append(
            f"Conformal sets at {CONFIDENCE:.0%} have val's thresholds: split (Sadinle et al. "
            "2019), adaptive (Romano et al. 2020). The intervals of coverage and size are over "
            "test images, for this val; over many vals coverage is at least what is asked for. An "
            "image whose highest score is below all of val's is taken for unlike val, and its set "
            "is empty: the thresholds allow for that, or val is too small and no image is."
        )
    return lines


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A head line and two lines a row; nothing where no row is calibrated."""
    own = [(row, row["calibration"]) for row in rows if row.get("calibration")]
    if not own:
        return
    width = max(len(row["name"]) for row, _ in own)
    yield "probabilities on test, before -> after a temperature fitted on val (0 is best):"
    for row, found in own:
        before, after = (found[time] for time in TIMES)
        yield (
            f"{'*' if row['selected'] else ' '} {row['name']:<{width}}  "
            f"ece {before['ece']:.3f} -> {after['ece']:.3f} "
            f"(true ones: below {after['ece_by_chance']:.3f})  "
            f"nll {_short(before['nll'])} -> {_short(after['nll'])}  "
            f"brier {_short(before['brier'])} -> {_short(after['brier'])}"
        )
    if any("sets" in found for _, found in own):
        yield f"sets of classes at {CONFIDENCE:.0%}: how many hold the right one, classes in a set:"
        for row, found in own:
            kinds = [one for one in found.get("sets", []) if one["time"] == "after"]
            yield (
                f"{'*' if row['selected'] else ' '} {row['name']:<{width}}  "
                + "  ".join(
                    f"{one['kind']} {one['coverage']['value']:.3f} "
                    f"[{one['coverage']['low']:.3f}, {one['coverage']['high']:.3f}], "
                    f"{one['size']['value']:.2f}"
                    for one in kinds
                )
            )


def _short(found: dict[str, float]) -> str:
    """A likelihood in few digits, as it may have any size."""
    return f"{found['value']:.3f}" if found["value"] < 1000 else f"{found['value']:.1e}"
