"""The bootstrap against a plain loop, its clusters, its pairing and its claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.metrics.bootstrap import Bootstrap, difference, interval


def clustered(images: int, each: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    clusters = torch.from_numpy(random.permutation(np.repeat(np.arange(images), each)))
    return torch.from_numpy(random.random(images * each)), clusters


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize("each", [1, 3])
def test_vectorised_resamples_equal_a_loop(statistic: str, each: int) -> None:
    values, clusters = clustered(11, each)
    boot = Bootstrap(11, resamples=70, seed=3)  # more than a chunk
    fast = getattr(boot, statistic)(values, clusters)
    for counts, got in zip(boot.counts, fast, strict=True):
        drawn = np.repeat(values.numpy(), counts[clusters.numpy()])
        assert got == pytest.approx(getattr(np, statistic)(drawn))


def test_every_resample_has_as_many_images_as_the_split() -> None:
    boot = Bootstrap(300, resamples=50)
    assert (boot.counts.sum(1, dtype=int) == 300).all()
    assert boot.counts.std() == pytest.approx(1, abs=0.05)  # nearly Poisson(1)


def test_resamples_are_a_function_of_the_seed() -> None:
    assert np.array_equal(Bootstrap(40, 9, seed=1).counts, Bootstrap(40, 9, seed=1).counts)
    assert not np.array_equal(Bootstrap(40, 9, seed=1).counts, Bootstrap(40, 9, seed=2).counts)


def test_captions_of_one_image_are_not_independent() -> None:
    """Five equal captions an image say what one says: the interval must not shrink."""
    values, clusters = clustered(200, 1)
    boot = Bootstrap(200)
    one = interval(0, boot.mean(values, clusters))
    five = interval(0, boot.mean(values.repeat(5), clusters.repeat(5)))
    assert five.high - five.low == pytest.approx(one.high - one.low)
    standard_error = float(values.std()) / 200**0.5
    assert one.high - one.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """400 samples of 60 from a known mean; 95 % intervals cover it in 90 to 98 % of them."""
    boot = Bootstrap(60, resamples=400)
    clusters = torch.arange(60)
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values = torch.from_numpy((random.random(60) < 0.4).astype(float))
        found = interval(0, boot.mean(values, clusters))
        covered += found.low <= 0.4 <= found.high
    assert 0.90 <= covered / 400 <= 0.98


def test_pairing_sees_what_two_intervals_cannot() -> None:
    """A small, consistent gain: the intervals overlap, the paired difference excludes zero."""
    values, clusters = clustered(100, 1)
    boot = Bootstrap(100)
    before, after = boot.mean(values, clusters), boot.mean(values + 0.01, clusters)
    assert interval(0, before).high > interval(0, after).low
    found = difference(0.01, after, before)
    assert found.low == pytest.approx(0.01)
    assert found.p == pytest.approx(2 / 2001)


def test_equal_models_differ_by_nothing() -> None:
    values, clusters = clustered(30, 2)
    boot = Bootstrap(30)
    same = boot.mean(values, clusters)
    found = difference(0, same, same)
    assert (found.low, found.high, found.p) == (0, 0, 1)


def test_the_sign_of_the_difference_is_ours_minus_theirs() -> None:
    values, clusters = clustered(50, 1)
    boot = Bootstrap(50)
    worse = difference(-0.1, boot.mean(values - 0.1, clusters), boot.mean(values, clusters))
    assert worse.high < 0
    assert worse.p < 0.01


def test_replicates_choose_the_statistic_by_the_metrics_name() -> None:
    values, clusters = clustered(21, 1)
    boot = Bootstrap(21, resamples=20)
    assert np.array_equal(
        boot.replicates("t2i_medr", values, clusters), boot.median(values, clusters)
    )
    assert np.array_equal(boot.replicates("t2i_r1", values, clusters), boot.mean(values, clusters))
