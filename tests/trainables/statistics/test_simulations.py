"""Made-up data of which the truth is known: how often what is claimed of it is false."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch

from pipelines.arena import ranks
from pipelines.arena.pairs import Answers, paired
from pipelines.evaluate.standings import correct, verdict
from tests.stated import agrees
from trainables.metrics.captioning import CaptionScores, References, bleu_of, score_captions
from trainables.statistics.bootstrap import Bootstrap, differing

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
    assert agrees([found / 500], f"ranks tell equal adapters apart ({datasets} data sets")


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
    assert 0.02 <= claimed / times <= 0.06
    assert agrees([claimed / times], f"one of two equal adapters leads ({images} images")


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
            value = values.mean()
            if name == "class_accuracy":
                value = torch.stack([values[labels == n].mean() for n in labels.unique()]).mean()
            found = bootstrap.interval(float(value), replicates)
            held[name] += found.low <= truth[name] <= found.high
    assert all(0.93 <= count / 400 <= 0.97 for count in held.values()), held
    shares = [count / 400 for count in held.values()]
    assert agrees(shares, "accuracy; class_accuracy", list(SHAPES).index(shape))


@pytest.mark.parametrize("adapters", [1, 5, 11])
def test_one_of_equal_adapters_beats_zero_shot_in_one_of_twenty_studies(adapters: int) -> None:
    images, studies, random = 250, 300, np.random.default_rng(1)
    bootstrap, claimed = Bootstrap(images, resamples=1000), 0
    ones = np.ones((images, adapters + 1))
    for _ in range(studies):
        hard = random.normal(size=(images, 1))
        right = (0.5 + hard + 0.6 * random.normal(size=ones.shape) > 0).astype(float)
        drawn, value = bootstrap.means(right, ones), right.mean(0)
        rows = []
        for n in range(1, adapters + 1):
            apart = int((right[:, n] != right[:, 0]).sum())
            gap = bootstrap.difference(value[n] - value[0], drawn[:, n], drawn[:, 0], apart)
            rows.append({"accuracy": asdict(gap)})
        correct(rows)
        claimed += any(verdict(row["accuracy"]).startswith("beats") for row in rows)
    assert claimed / studies <= 0.06
    assert agrees([claimed / studies], f"one of {adapters} equal adapters beats")


@pytest.mark.parametrize("apart", [4, 5, None])
def test_models_that_differ_on_few_images_are_told_apart_in_one_of_twenty(
    apart: int | None,
) -> None:
    """Two equal models: on `apart` of 400 images (None: on 6, expected) one of them is right, by a
    coin. By resamples alone, they were told apart by 4 images in one of eight studies."""
    images, random, claimed = 400, np.random.default_rng(0), 0
    bootstrap, every = Bootstrap(images, resamples=500), torch.arange(images)
    nothing = torch.zeros(images)
    for _ in range(500):
        gaps = torch.zeros(images)
        some = random.random(images) < 6 / images if apart is None else np.arange(images) < apart
        gaps[torch.from_numpy(some)] = torch.from_numpy(
            random.choice([-1.0, 1.0], some.sum())
        ).float()
        drawn = bootstrap.mean(gaps, every), np.zeros(500)
        found = bootstrap.difference(float(gaps.mean()), *drawn, differing(gaps, nothing, every))
        claimed += found.p < 0.05
    assert claimed / 500 <= 0.06
    assert agrees([claimed / 500], f"two equal models differ ({apart or 'about 6'} of 400")


# -- captions and images: intervals of all other metrics ---------------------------------------

POPULATION = 5000  # images, of which a study has a few
Study = tuple[dict[str, float], dict[str, np.ndarray]]  # metrics, and in each resample
STUDIES = {  # images, and of each the fewest and the most captions
    "few images": (60, 3, 3),
    "many captions": (150, 5, 5),
    "unequal": (120, 1, 9),
}


def coverage(
    truth: list[dict[str, float]],
    images: int,
    study: Callable[[int, Bootstrap, np.ndarray], Study],
    times: int = 800,
) -> dict[str, float]:
    """How often the interval of each metric of the first of two models holds the population's
    value, and that of their difference (`name-`) the population's difference."""
    random, bootstrap = np.random.default_rng(1), Bootstrap(images, resamples=600)
    held: dict[str, int] = {}
    for _ in range(times):
        rows = random.integers(POPULATION, size=images)
        (value, drawn), (other, theirs) = (study(model, bootstrap, rows) for model in (0, 1))
        for name in value:
            one = bootstrap.interval(value[name], drawn[name])
            both = drawn[name], theirs[name]
            gap = bootstrap.difference(value[name] - other[name], *both, images)
            apart = truth[0][name] - truth[1][name]
            held[name] = held.get(name, 0) + (one.low <= truth[0][name] <= one.high)
            held[name + "-"] = held.get(name + "-", 0) + (gap.low <= apart <= gap.high)
    return {name: count / times for name, count in held.items()}


def rank_values(ranks: np.ndarray) -> dict[str, np.ndarray]:
    return {"r1": ranks <= 1, "r5": ranks <= 5, "mrr": 1 / ranks, "t2i_medr": ranks}


def rank_summary(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {
        name: float(np.median(v) if name == "t2i_medr" else v.mean()) for name, v in values.items()
    }


@pytest.mark.parametrize("shape", STUDIES)
def test_what_ranks_say_lies_in_its_interval(shape: str) -> None:
    """A caption's rank among a fixed pool of 1,000: its image is hard, more so for one of the two
    models, and so is it; of harder images there may be more captions. Medians of whole ranks move
    in steps: their differences have intervals that are too wide, never too narrow."""
    images, fewest, most = STUDIES[shape]
    random = np.random.default_rng(0)
    hard = random.normal(size=POPULATION)
    each = np.clip(random.poisson(np.exp(0.7 + 0.6 * hard)), fewest, most)
    of, start = np.repeat(np.arange(POPULATION), each), np.append(0, each.cumsum())
    own, taste = 1.2 * random.normal(size=len(of)), 0.7 * random.normal(size=(2, POPULATION))
    place = 2.8 + 2 * hard[of] + own + taste[:, of] + 0.6 * random.normal(size=(2, len(of)))
    ranks = np.minimum(1 + np.exp(place - [[0.0], [0.15]]) // 1, 1000)

    def study(model: int, bootstrap: Bootstrap, rows: np.ndarray) -> Study:
        queries = np.concatenate([np.arange(start[row], start[row + 1]) for row in rows])
        clusters = torch.from_numpy(np.repeat(np.arange(images), each[rows]))
        values = rank_values(ranks[model, queries])
        drawn = {
            name: bootstrap.replicates(name, torch.from_numpy(v.astype(float)), clusters)
            for name, v in values.items()
        }
        return rank_summary(values), drawn

    held = coverage([rank_summary(rank_values(own)) for own in ranks], images, study)
    for name, row in (("r1", "R@1"), ("mrr", "MRR"), ("t2i_medr", "median rank")):
        assert agrees([held[name], held[f"{name}-"]], row, list(STUDIES).index(shape))
    assert held.pop("t2i_medr-") >= 0.93, held
    assert all(0.93 <= share <= 0.97 for share in held.values()), held


def spoken(random: np.random.Generator, scene: int, clear: float) -> str:
    """Some words of a scene's own sentence, others by chance, of which some are frequent."""
    length = int(random.integers(4, 11))
    chance = (40 * random.random(length) ** 2).astype(int)
    words = np.where(random.random(length) < clear, (3 * scene + np.arange(length)) % 40, chance)
    return " ".join(f"w{word}" for word in words)


def captioned(shape: str) -> list[CaptionScores]:
    """What two captioners say of a population of images, each of one of 20 scenes."""
    random, (_, fewest, most) = np.random.default_rng(0), STUDIES[shape]
    people, said = [], ([], [])  # type: ignore[var-annotated]
    for _ in range(POPULATION):
        scene, clear = int(20 * random.random() ** 1.5), random.uniform(0.55, 0.95)
        count = int(random.integers(fewest, most + 1))
        people.append([spoken(random, scene, clear) for _ in range(count)])
        good = 0.35 + 0.6 * random.random() * clear
        for own in said:
            own.append(spoken(random, scene, float(np.clip(good + 0.1 * random.normal(), 0, 1))))
    references = References(people)
    return [score_captions(own, references, meteor=False) for own in said]


@pytest.mark.parametrize("shape", STUDIES)
def test_what_caption_metrics_say_lies_in_its_interval(shape: str) -> None:
    """The truth of corpus BLEU is that of all captions of the population; of CIDEr-D it is the mean
    over the population by the weights that every study has, which are the population's."""
    images, names = STUDIES[shape][0], ("cider_d", "rouge_l", "sentence_bleu4")
    models, every = captioned(shape), torch.arange(images)

    def summary(model: int, rows: np.ndarray | slice) -> dict[str, float]:
        bleu = bleu_of(models[model].bleu[rows].sum(0))
        found = {name: float(models[model].values[name][rows].mean()) for name in names}
        return {"bleu1": float(bleu[0]), "bleu4": float(bleu[3]), **found}

    def study(model: int, bootstrap: Bootstrap, rows: np.ndarray) -> Study:
        bleu = bleu_of(bootstrap.sums(models[model].bleu[rows], every))
        drawn = {n: bootstrap.mean(models[model].values[n][rows], every) for n in names}
        return summary(model, rows), {"bleu1": bleu[:, 0], "bleu4": bleu[:, 3], **drawn}

    held = coverage([summary(model, slice(None)) for model in (0, 1)], images, study)
    for name, row in (("bleu4", "BLEU-4"), ("cider_d", "CIDEr-D"), ("rouge_l", "ROUGE-L")):
        assert agrees([held[name], held[f"{name}-"]], row, list(STUDIES).index(shape))
    assert all(0.93 <= share <= 0.97 for share in held.values()), held
