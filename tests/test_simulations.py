"""Made-up data of which the truth is known: how often what is claimed of it is false."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from pipelines.comparing import ranks
from pipelines.comparing.pairs import Answers, paired
from pipelines.measuring.standings import correct, verdict
from trainables.metrics.bootstrap import Bootstrap, difference, interval

Run = list[Answers]


# -- the arena: equal adapters ----------------------------------------------------------------


@pytest.mark.parametrize(("datasets", "protocols"), [(5, 3), (8, 1), (6, 4)])
def test_equal_adapters_are_told_apart_by_ranks_in_one_of_twenty(
    datasets: int, protocols: int
) -> None:
    """What an adapter is by luck on a data set it is under all protocols there."""
    random, found = np.random.default_rng(0), 0
    for _ in range(500):
        luck = np.repeat(random.normal(size=(datasets, 6)), protocols, 0)
        values = luck + 0.5 * random.normal(size=luck.shape)
        own = np.repeat(np.arange(datasets), protocols)
        found += ranks._friedman(ranks._ranked(values, own.tolist()))[1] < ranks.LEVEL
    assert found / 500 <= 0.06


def trained(
    random: np.random.Generator, images: int, seeds: int, rows: int, spread: float, pooled: bool
) -> tuple[list[Run], list[Run]]:
    """The answers of two equal adapters: an image is hard for both and more so for one, a seed is
    lucky (`spread`); an image stands in `rows` rows; `pooled`: each seed has a test of its own."""
    pool = images * 3 // 2 if pooled else images
    hard, taste = random.normal(size=pool), 0.5 * random.normal(size=(2, pool))
    sides: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(seeds):
        own = np.arange(images)
        if pooled:
            own = np.sort(random.permutation(pool)[:images])
        own = np.repeat(own, rows)
        for side, taken in enumerate(sides):
            luck = 1 + spread * random.normal() + 0.7 * random.normal(size=pool)
            right = (luck + hard + taste[side])[own] > 0
            taken.append([Answers(right.astype(float), own)])
    return sides


@pytest.mark.parametrize(
    ("images", "seeds", "rows", "spread", "pooled"),
    [
        (300, 3, 1, 0.1, False),
        (60, 3, 4, 0.3, False),  # few images, each often
        (120, 1, 1, 0.0, False),
        (200, 3, 1, 0.2, True),
    ],
)
def test_equal_adapters_lead_in_one_of_twenty_pairs(
    images: int, seeds: int, rows: int, spread: float, pooled: bool
) -> None:
    random, claimed, times = np.random.default_rng(0), 0, 200 if pooled else 500
    for _ in range(times):
        gap = paired(*trained(random, images, seeds, rows, spread, pooled))
        assert (gap.p < 0.05) == (not gap.low <= 0 <= gap.high)
        claimed += gap.p < 0.05
    assert 0.03 <= claimed / times <= 0.06


# -- one model: how often an interval holds the truth -----------------------------------------

SHAPES = {  # images of each class, rows an image
    "few images": ([20, 20, 20], 1),
    "equal images": ([60, 60], 3),
    "unequal classes": ([150, 30, 20], 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy_and_class_accuracy_lie_in_their_intervals(shape: str) -> None:
    sizes, rows = SHAPES[shape]
    skills = np.linspace(0.85, 0.5, len(sizes))
    share = np.array(sizes) / sum(sizes)
    truth = {"accuracy": float(share @ skills), "class_accuracy": float(skills.mean())}
    random, images = np.random.default_rng(0), sum(sizes)
    bootstrap = Bootstrap(images, resamples=600)
    held = dict.fromkeys(truth, 0)
    for _ in range(400):
        label = random.choice(len(sizes), images, p=share)
        right = torch.from_numpy((random.random(images) < skills[label]).astype(float))
        which = torch.arange(images).repeat_interleave(rows)
        values, labels = right[which], torch.from_numpy(label)[which]
        drawn = {
            "accuracy": bootstrap.mean(values, which),
            "class_accuracy": bootstrap.class_mean(values, which, labels),
        }
        for name, replicates in drawn.items():
            found = interval(0.0, replicates)
            held[name] += found.low <= truth[name] <= found.high
    assert all(0.93 <= count / 400 <= 0.97 for count in held.values()), held


@pytest.mark.parametrize("adapters", [1, 5, 11])
def test_one_of_equal_adapters_beats_zero_shot_in_one_of_twenty_studies(adapters: int) -> None:
    images, studies, random = 250, 300, np.random.default_rng(1)
    bootstrap, claimed = Bootstrap(images, resamples=1000), 0
    ones = np.ones((images, adapters + 1))
    for _ in range(studies):
        hard = random.normal(size=(images, 1))
        right = (0.5 + hard + 0.6 * random.normal(size=ones.shape) > 0).astype(float)
        drawn, value = bootstrap.means(right, ones), right.mean(0)
        rows = [
            {"accuracy": asdict(difference(value[n] - value[0], drawn[:, n], drawn[:, 0]))}
            for n in range(1, adapters + 1)
        ]
        correct(rows)
        claimed += any(verdict(row["accuracy"]).startswith("beats") for row in rows)
    assert claimed / studies <= 0.06
