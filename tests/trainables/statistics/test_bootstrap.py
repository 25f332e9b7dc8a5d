"""The bootstrap against a plain loop, its clusters, its pairing and its claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from trainables.statistics.bootstrap import Bootstrap, differing


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
    value = float(values.mean())
    one = boot.interval(value, boot.mean(values, clusters))
    five = boot.interval(value, boot.mean(values.repeat(5), clusters.repeat(5)))
    assert five.high - five.low == pytest.approx(one.high - one.low)
    standard_error = float(values.std()) / 200**0.5
    assert one.high - one.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """400 samples of 60 from a known mean; 95 % intervals cover it in 93 to 97 % of them."""
    boot = Bootstrap(60, resamples=400)
    clusters = torch.arange(60)
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values = torch.from_numpy((random.random(60) < 0.4).astype(float))
        found = boot.interval(float(values.mean()), boot.mean(values, clusters))
        covered += found.low <= 0.4 <= found.high
    assert 0.93 <= covered / 400 <= 0.97


def test_pairing_sees_what_two_intervals_cannot() -> None:
    """A small, consistent gain: the intervals overlap, the paired difference excludes zero."""
    values, clusters = clustered(100, 1)
    boot = Bootstrap(100)
    before, after = boot.mean(values, clusters), boot.mean(values + 0.01, clusters)
    value = float(values.mean())
    assert boot.interval(value, before).high > boot.interval(value + 0.01, after).low
    found = boot.difference(0.01, after, before, 100)
    assert found.low == pytest.approx(0.01)
    assert 2 / 2001 < found.p == boot.least < 0.002  # never zero; Student's, for 100 images


def test_equal_models_differ_by_nothing() -> None:
    values, clusters = clustered(30, 2)
    boot = Bootstrap(30)
    same = boot.mean(values, clusters)
    found = boot.difference(0, same, same, 0)
    assert (found.low, found.high, found.p) == (0, 0, 1)


def test_the_sign_of_the_difference_is_ours_minus_theirs() -> None:
    values, clusters = clustered(50, 1)
    boot = Bootstrap(50)
    drawn = boot.mean(values - 0.1, clusters), boot.mean(values, clusters)
    worse = boot.difference(-0.1, *drawn, 50)
    assert worse.high < 0
    assert worse.p < 0.01


def test_replicates_choose_the_statistic_by_the_metrics_name() -> None:
    values, clusters = clustered(21, 1)
    boot = Bootstrap(21, resamples=20)
    assert np.array_equal(
        boot.replicates("t2i_medr", values, clusters), boot.median(values, clusters)
    )
    assert np.array_equal(boot.replicates("t2i_r1", values, clusters), boot.mean(values, clusters))


def test_an_interval_is_efrons_bca_with_students_factor() -> None:
    """Against BCa by SciPy: the same normal percentiles where the factor is taken out."""
    random = np.random.default_rng(0)
    values = random.exponential(size=400)
    boot = Bootstrap(400, resamples=4000)
    found = boot.interval(values.mean(), boot.mean(torch.from_numpy(values), torch.arange(400)))
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, rng=1).confidence_interval
    width = values.std() / 400**0.5
    assert found.low == pytest.approx(expected.low, abs=0.15 * width)
    assert found.high == pytest.approx(expected.high, abs=0.15 * width)
    assert found.high - values.mean() > values.mean() - found.low + 0.2 * width  # it is skewed


def test_the_interval_ends_at_zero_where_p_is_its_level() -> None:
    random, boot = np.random.default_rng(0), Bootstrap(12, resamples=999)
    clusters, seen = torch.arange(12), set()
    for _ in range(200):
        ours, theirs = torch.from_numpy(random.normal([[0.9], [0.0]], size=(2, 12)))
        drawn = boot.mean(ours, clusters), boot.mean(theirs, clusters)
        found = boot.difference(float(ours.mean() - theirs.mean()), *drawn, 12)
        if abs(found.p - 0.05) > 0.004:  # an end is interpolated between two resamples
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
            seen.add(found.p < 0.05)
    assert seen == {True, False}


@pytest.mark.parametrize("images", [1, 2, 5, 6, 9])
def test_p_is_at_least_that_of_all_signs_alike(images: int) -> None:
    """One image of one on which two models differ says nothing; of six, at best 1/32."""
    clusters = torch.arange(images).repeat(2)
    better, worse = torch.ones(2 * images), torch.zeros(2 * images)
    assert differing(better, worse, clusters) == images
    assert differing(better, torch.tensor([0.0] + [1.0] * (2 * images - 1)), clusters) == 1
    boot = Bootstrap(images)
    drawn = boot.mean(better, clusters), boot.mean(worse, clusters)
    assert boot.difference(1.0, *drawn, images).p == max(2.0 ** (1 - images), boot.least)


def test_many_resamples_reach_a_small_p() -> None:
    boot = Bootstrap(40, resamples=200)
    needed = boot.needed(0.001)
    assert needed is not None
    assert boot.least > 0.001
    assert Bootstrap(40, needed).least < 0.001 < Bootstrap(40, needed - 2).least
    assert Bootstrap(2, 200).needed(0.001) is None  # not by any number
