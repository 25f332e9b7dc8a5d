"""Classification metrics against loops over images, and ties in expectation."""

from __future__ import annotations

import math

import pytest
import torch

from trainables.metrics.classification import (
    by_class,
    calibrated_likelihood,
    class_weights,
    classification_metrics,
    hits,
)


def test_ties_count_as_their_chance() -> None:
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.2],  # right
            [0.9, 0.1, 0.2],  # wrong
            [0.5, 0.5, 0.2],  # one of two
            [0.5, 0.5, 0.2],  # beside the two
            [0.3, 0.3, 0.3],  # one of three
        ]
    )
    labels = torch.tensor([0, 1, 1, 2, 2])
    assert hits(scores, labels).tolist() == pytest.approx([1, 0, 1 / 2, 0, 1 / 3])
    assert hits(scores, labels).dtype == torch.float64


def test_the_mean_of_each_class_and_of_classes() -> None:
    values, labels = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([2, 2, 2, 0])
    found = by_class(values, labels, 4)
    assert found[[0, 2]].tolist() == pytest.approx([1, 2 / 3])
    assert found[[1, 3]].isnan().all()
    scores = torch.eye(4)[[2, 0, 2, 0]]
    metrics = classification_metrics(scores, labels, 1.0)
    assert metrics["accuracy"] == pytest.approx(3 / 4)
    # Classes without images count neither as right nor as wrong.
    assert metrics["class_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_weights_make_a_mean_over_images_that_over_classes() -> None:
    labels = torch.tensor([0] * 7 + [1] * 11 + [3] * 3)
    right = torch.rand(21, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = class_weights(labels, 5)
    expected = float(by_class(right, labels, 5).nanmean())
    assert float((right * weights).mean()) == pytest.approx(expected, abs=1e-12)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-12)  # all right: 1, not 0.99999998


def test_metrics_equal_a_loop_over_images() -> None:
    random = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (50, 6), generator=random) / 4  # many ties
    labels = torch.randint(6, (50,), generator=random)
    right, likely = [], []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        best = max(row)
        right.append((row[label] == best) / row.count(best))
        powers = [math.exp(20.0 * score) for score in row]
        likely.append(math.log(powers[label] / sum(powers)))
    classes = [[r for r, label in zip(right, labels, strict=True) if label == c] for c in range(6)]
    metrics = classification_metrics(scores, labels, 20.0)
    assert metrics == {
        "accuracy": pytest.approx(sum(right) / 50),
        "class_accuracy": pytest.approx(sum(sum(c) / len(c) for c in classes) / 6),
        "log_likelihood": pytest.approx(sum(likely) / 50),
    }


def test_scores_far_apart_have_a_finite_likelihood() -> None:
    scores = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    metrics = classification_metrics(scores, torch.tensor([0, 1]), 1000.0)
    assert metrics["log_likelihood"] == pytest.approx(-1000.0)


def test_scores_that_are_no_numbers_have_no_best_temperature() -> None:
    """A run may diverge in the last step before it is measured: that is its own failure."""
    scores = torch.tensor([[0.1, math.nan], [0.2, 0.3]])
    found, scale = calibrated_likelihood(scores, torch.tensor([0, 1]))
    assert math.isnan(found)
    assert scale == 1


def test_of_scores_that_are_all_right_the_surer_ones_are_likelier() -> None:
    labels = torch.arange(40) % 4
    right = torch.nn.functional.one_hot(labels, 4).double()
    noise = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)).double()
    sure, less = right + 0.05 * noise, right + 0.2 * noise
    for scores in (sure, less):
        assert bool((scores.argmax(1) == labels).all())
    (one, at), (other, _) = (calibrated_likelihood(scores, labels) for scores in (sure, less))
    assert at < 100  # no end of it would be the likeliest
    assert other < one - 1e-3 < 0
    twice, half = calibrated_likelihood(2 * sure, labels)
    assert (twice, 2 * half) == pytest.approx((one, at), rel=1e-4)
