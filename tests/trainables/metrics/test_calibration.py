"""Probabilities from scores, and sets with a promise, beside scikit-learn and MAPIE."""

from __future__ import annotations

import math
import re
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from torch import Tensor

from pipelines.classify import __main__ as classify
from tests.stated import PAGE, agrees
from tests.trainables.adapters.test_few_shot_runs import finish, start
from trainables.errors import CheckpointError, DataError
from trainables.files import read_json, sha256_file, sha256_json, write_json
from trainables.metrics.calibration import KINDS, Calibration, Kind, calibrate
from trainables.metrics.calibration_error import (
    BINS,
    brier,
    calibration_error,
    error_by_chance,
    fit_scale,
    reliability,
)
from trainables.metrics.classification import calibrated_likelihood
from trainables.metrics.conformal import adaptive_misfit, least, spread, threshold
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import load_adapter
from trainables.training.measure import examine

FEW = [1, 2, 8]


def drawn(count: int, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Similarities (N, C) and labels: right in two of three cases."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=random)
    scores = torch.randn(count, classes, generator=random)
    scores[torch.arange(count), labels] += 1.6
    return scores / 20, labels


def of(scores: Tensor, labels: Tensor, own_scale: float = 100.0) -> Calibration:
    return calibrate(scores, labels, own_scale)


# -- how far probabilities are to be believed -------------------------------------------------


def test_brier_and_the_diagram_are_scikit_learns() -> None:
    scores, labels = drawn(500)
    shares = (30 * scores.double()).softmax(1)
    theirs = brier_score_loss(labels, shares.numpy(), labels=range(6), scale_by_half=False)
    assert float(brier(shares, labels).mean()) == pytest.approx(theirs)
    confidences, chosen = shares.max(1)
    right = chosen == labels
    accuracy, confidence = calibration_curve(right.numpy(), confidences.numpy(), n_bins=BINS)
    bins = reliability(confidences, right)
    assert [one.accuracy for one in bins] == pytest.approx(accuracy.tolist())
    assert [one.confidence for one in bins] == pytest.approx(confidence.tolist())
    assert sum(one.images for one in bins) == 500


def test_the_calibration_error_is_the_mean_distance_in_the_bins() -> None:
    confidences = torch.tensor([0.95, 0.99, 0.55, 0.53, 0.54, 1.0])
    right = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    top, middle = abs(2 - 0.95 - 0.99 - 1.0), abs(1 - 0.55 - 0.53 - 0.54)
    assert calibration_error(confidences, right) == pytest.approx((top + middle) / 6)
    assert calibration_error(torch.ones(1), torch.ones(1)) == 0


def test_true_probabilities_are_within_chance_in_19_of_20_cases() -> None:
    random, within = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        confidences = 0.4 + 0.6 * torch.rand(80, generator=random)
        right = (torch.rand(80, generator=random) < confidences).double()
        within += calibration_error(confidences, right) <= error_by_chance(confidences)
    assert 0.91 <= within / 200 <= 0.98
    assert agrees([1 - within / 200], "true probabilities are called off")


def test_the_scale_is_the_likeliest_of_what_is_missed_once_more() -> None:
    scores, labels = drawn(60)
    ranked = scores.double().sort(1, descending=True)
    right = ranked.indices[:, 0] == labels
    lead = (ranked.values[:, 0] - ranked.values[:, 1]).masked_fill(~right, math.inf)
    unsure = int(lead.argmin())
    rows = torch.cat([scores, scores[unsure, None]]).double()
    truth = torch.cat([labels, ranked.indices[unsure, 1, None]])

    def likelihood(scale: float) -> float:
        return float((scale * rows).log_softmax(1).gather(1, truth[:, None]).mean())

    found = fit_scale(scores, labels)
    assert all(likelihood(scale) <= likelihood(found) for scale in np.geomspace(0.1, 1e4, 300))
    assert fit_scale(10 * scores, labels) == pytest.approx(found / 10, rel=1e-4)


def test_one_scale_serves_a_model_that_val_finds_no_fault_with() -> None:
    """Where Platt's guard would make it doubt itself."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(19, (4076,), generator=random)
    scores = torch.randn(4076, 19, generator=random)
    scores[torch.arange(4076), labels] += 5
    val, test = slice(76), slice(76, None)
    found, platts = (
        of(scores[val], labels[val]).scale,
        calibrated_likelihood(scores[val], labels[val])[1],
    )
    errors = []
    for scale in (found, platts):
        confidences, chosen = (scale * scores[test]).softmax(1).max(1)
        errors.append(calibration_error(confidences, chosen == labels[test]))
    assert errors[0] < 0.02
    assert errors[0] < errors[1]


def test_a_temperature_of_val_makes_an_overconfident_model_believable() -> None:
    scores, labels = drawn(1000, seed=1)
    found = of(scores, labels)
    assert found.scale < found.own_scale  # at 100 it is too sure of itself
    others, truth = drawn(4000, seed=2)
    errors = []
    for fitted in (False, True):
        confidences, chosen = found.probabilities(others, fitted).max(1)
        errors.append(calibration_error(confidences, chosen == truth))
        chance = error_by_chance(confidences)
    assert errors[0] > 0.15
    assert errors[1] < 0.03
    assert chance < 0.03


# -- sets -------------------------------------------------------------------------------------


class Fixed(ClassifierMixin, BaseEstimator):
    """A fitted classifier for MAPIE, whose inputs are its probabilities."""

    def __init__(self) -> None:
        self.classes_ = np.arange(6)

    def fit(self, rows: Any, labels: Any) -> Fixed:
        del rows, labels
        return self

    def predict(self, rows: Any) -> Any:
        return rows.argmax(1)

    def predict_proba(self, rows: Any) -> Any:
        return rows

    def __sklearn_is_fitted__(self) -> bool:
        return True


def test_classify_offers_the_kinds_of_sets_that_there_are() -> None:
    assert typing.get_args(typing.get_type_hints(classify.Args)["sets"]) == KINDS


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_split_sets_are_mapies(confidence: float) -> None:
    found = of(*drawn(200))
    calibrating, labels = drawn(200)
    allowed = confidence + 1 / 201  # a rank more, for images that are taken for unlike val
    theirs = SplitConformalClassifier(Fixed(), confidence_level=allowed)
    theirs.conformalize(found.probabilities(calibrating).numpy(), labels.numpy())
    others, _ = drawn(300, seed=3)
    _, sets = theirs.predict_set(found.probabilities(others).numpy())
    unlike = found.unlike_val(others, confidence)
    own = found.sets(others, confidence)
    assert not own[unlike].any()
    assert np.array_equal(sets[:, :, 0][~unlike.numpy()], own[~unlike].numpy())


def test_adaptive_sets_take_the_likeliest_until_val_says_enough() -> None:
    calibrating, labels = drawn(200)
    found = of(calibrating, labels)
    shares = found.probabilities(calibrating).numpy()
    before = []  # what is likelier than the own class, by hand
    for row, label in zip(shares, labels.tolist(), strict=True):
        before.append(row[row > row[label]].sum())
    most = sorted(before)[math.ceil(0.9 * 201)]  # a rank more, for images unlike val
    others, _ = drawn(50, seed=3)
    others = others[~found.unlike_val(others, 0.9, "adaptive")]
    for row, inside in zip(
        found.probabilities(others).numpy(), found.sets(others, 0.9, "adaptive"), strict=True
    ):
        ranked = np.argsort(-row)
        likelier = row[ranked].cumsum() - row[ranked]
        assert set(inside.nonzero()[:, 0].tolist()) == set(ranked[likelier <= most].tolist())


def test_no_set_leaves_a_class_out_where_val_has_too_few_images() -> None:
    assert [least(c) for c in (0.8, 0.9, 0.95, 0.99)] == [4, 9, 19, 99]
    for confidence in (0.8, 0.9, 0.95, 0.99):
        enough = least(confidence)
        assert math.isfinite(threshold(torch.rand(enough), confidence))
        assert math.isinf(threshold(torch.rand(enough - 1), confidence))
    found = of(*drawn(8))
    for kind in KINDS[:2]:
        assert found.sets(drawn(5)[0], 0.9, kind).all()
    assert not found.unlike_val(torch.full((1, 6), -9.0), 0.9).any()


def test_the_docs_know_how_far_coverage_of_one_val_is_from_another() -> None:
    said = re.search(r"of (\d+) images, it is ([\d.]+) to ([\d.]+) %", PAGE.read_text())
    assert said is not None
    low, high = spread(int(said[1]), 0.9) or (0.0, 0.0)
    assert said.groups()[1:] == (f"{100 * low:.1f}", f"{100 * high:.1f}")


def test_class_wise_sets_need_images_of_every_class() -> None:
    scores, labels = drawn(200)
    few = labels != 3
    few[(labels == 3).nonzero()[:4, 0]] = True
    with pytest.raises(DataError, match="need 9 val images of each class, got 4 of the class with"):
        of(scores[few], labels[few]).sets(scores, 0.9, "class-wise")
    missing = labels != 3
    with pytest.raises(DataError, match="got 0 of the class with the fewest"):
        of(scores[missing], labels[missing]).sets(scores, 0.9, "class-wise")
    sets = of(scores, labels).sets(scores, 0.9, "class-wise")
    for label in range(6):
        own = sets[labels == label, label]
        assert own.sum() >= math.ceil(0.9 * (len(own) + 1)) - 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_sets_hold_the_right_class_as_often_as_they_say(kind: Kind, confidence: float) -> None:
    """Within a point, over val and image drawn together, of 2,000 images for each of 20 vals."""
    held, size = 0.0, 0.0
    for seed in range(20):
        found = of(*drawn(2000, seed=100 + seed))
        others, truth = drawn(2000, seed=seed)
        sets = found.sets(others, confidence, kind)
        held += float(sets[torch.arange(2000), truth].double().mean()) / 20
        size += float(sets.sum(1).double().mean()) / 20
    assert confidence - 0.01 <= held <= confidence + 0.01
    assert agrees([held], f"{kind} sets", [0.8, 0.9].index(confidence))
    assert 1 < size < 3


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("count", [9, 19, 40])
def test_sets_of_few_val_images_hold_what_they_say(kind: Kind, count: int) -> None:
    """Beside one image in `count` + 1 that is taken for unlike val, which 9 images do not allow."""
    held, unlike = [], []
    for seed in range(300):
        scores, labels = drawn(count + 200, 3, seed=seed)
        found, others = of(scores[:count], labels[:count]), scores[count:]
        sets = found.sets(others, 0.9, kind)
        held.append(float(sets.gather(1, labels[count:, None]).double().mean()))
        unlike.append(float(found.unlike_val(others, 0.9, kind).double().mean()))
    assert np.mean(held) >= 0.9 - 2 * np.std(held) / 300**0.5
    assert np.mean(unlike) == pytest.approx(0 if count == 9 else 1 / (count + 1), rel=0.3)


def test_an_image_unlike_all_of_val_is_told_and_hardly_one_like_it() -> None:
    found = of(*drawn(500))
    assert found.unlike_val(torch.full((1, 6), float(found.best.min()) - 1e-3), 0.9).all()
    others, _ = drawn(4000, seed=5)
    assert float(found.unlike_val(others, 0.9).double().mean()) < 0.01


@pytest.mark.parametrize("count", FEW)
def test_few_images_equal_scores_and_no_error_at_all_have_numbers(count: int) -> None:
    labels = torch.arange(count) % 6
    equal = of(torch.zeros(count, 6), labels)
    sure = of(torch.nn.functional.one_hot(labels, 6).float(), labels, own_scale=1e6)
    for found in (equal, sure):
        assert math.isfinite(found.scale)
        for kind in KINDS[:2]:
            assert found.sets(torch.zeros(3, 6), 0.9, kind).all()
        for tensor in found.tensors().values():
            assert tensor.isfinite().all()


def test_ties_share_what_stands_above_them_in_a_fixed_order() -> None:
    found = adaptive_misfit(torch.tensor([[0.25, 0.5, 0.25]]))
    assert found.tolist() == [[0.5, 0.0, 0.75]]


# -- beside the adapter -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip_adapter", "tip_adapter", "linear_probe"])
def test_the_best_checkpoint_holds_the_calibration_of_val(
    tmp_path: Path, backbone: Backbone, features: Path, name: str
) -> None:
    run = finish(start(tmp_path, backbone, features, name))
    adapter = load_adapter(tmp_path / "best", backbone)
    found = adapter.calibration
    assert found is not None
    assert torch.equal(found.labels, run.val.labels)
    assert found.own_scale == adapter.tau
    assert not (tmp_path / "last" / "calibration.safetensors").exists()
    if name != "tip_adapter":  # which is measured on each image as others of val chose
        again = examine(adapter, run.val).calibration()
        assert again is not None
        assert again.scale == pytest.approx(found.scale, rel=1e-4)
        torch.testing.assert_close(again.split, found.split, atol=1e-5, rtol=1e-4)
    kept = Calibration.of_tensors(found.tensors(), len(adapter.classes or ()))
    scores = torch.rand(3, len(adapter.classes or ()))
    assert torch.equal(kept.sets(scores, 0.8), found.sets(scores, 0.8))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"labels": None}, "must hold scales, labels, best, split, adaptive, got"),
        ({"scales": torch.tensor([100.0, torch.nan])}, "`scales` must be finite and of shape (2,)"),
        ({"scales": torch.tensor([100.0, -5.0])}, "`scales` must be above 0, got [100.0, -5.0]"),
        ({"split": torch.zeros(1, 9)}, "`split` must be finite and of shape (2, 9), got (1, 9)"),
        ({"labels": torch.full((9,), 6)}, "`labels` must be those of 6 classes, got tensor([6,"),
        ({"labels": torch.zeros(9)}, "`labels` must be those of 6 classes"),
        ({"adaptive": torch.full((2, 9), torch.nan)}, "`adaptive` must be finite"),
    ],
)
def test_a_calibration_that_cannot_be_one_is_refused(
    changed: dict[str, Tensor | None], reason: str
) -> None:
    stored = of(*drawn(9)).tensors() | changed
    with pytest.raises(DataError, match=re.escape(reason)):
        Calibration.of_tensors({k: v for k, v in stored.items() if v is not None}, 6)


def test_only_the_calibration_of_the_manifest_is_loaded_and_whole(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    finish(start(tmp_path, backbone, features, "clip_adapter"))
    best = tmp_path / "best"
    path = best / "calibration.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    manifest = read_json(best / "manifest.json")
    for listed, about in ((True, sha256_file(path)), (False, "")):
        manifest["files"] = {k: v for k, v in manifest["files"].items() if k != path.name}
        manifest["files"] |= {path.name: about} if listed else {}
        manifest.pop("sha256")
        manifest["sha256"] = sha256_json(manifest)
        write_json(best / "manifest.json", manifest)
        if listed:
            with pytest.raises(
                CheckpointError, match=r"calibration.safetensors` is no calibration"
            ):
                load_adapter(best, backbone)
    assert load_adapter(best, backbone).calibration is None
