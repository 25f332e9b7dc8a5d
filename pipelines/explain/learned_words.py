"""A learned prompt in numbers: its words beside chance, each vector's worth, its seeds.

Flows in: adapters with learned vectors, and val. Flows out: plain values for explain.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.adapters.base import Adapter
from trainables.errors import ConfigError
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone
from trainables.models.vocabulary import Measure
from trainables.statistics.interpretation import ablation, against_random, nearest_words, stability
from trainables.training.measure import measure as measure_on

MEASURES: tuple[Measure, ...] = ("cosine", "euclidean")
PAIRS = 200  # of random prompts that seeds are compared with


def words(vectors: Tensor, backbone: Backbone, k: int, draws: int) -> dict[str, Any]:
    """Nearest words and the null by each measure; lists have one entry a vector, (C x M) flat."""
    return {measure: _by(measure, vectors, backbone, k, draws) for measure in MEASURES}


def _by(
    measure: Measure, vectors: Tensor, backbone: Backbone, k: int, draws: int
) -> dict[str, Any]:
    near = nearest_words(vectors, backbone, k, measure)
    chance = against_random(vectors, backbone, measure, draws)
    places = [tuple(place) for place in torch.ones(vectors.shape[:-1]).nonzero().tolist()]
    rows = [
        [{**asdict(word), "distance": distance} for word, distance in near.words(*place)]
        for place in places
    ]
    bands = {
        name: getattr(chance, name).flatten().tolist()
        for name in ("nearest", "low", "high", "p", "corrected")
    }
    return {"words": rows, "correction": chance.correction, **bands}


def ablate(
    adapter: Adapter[Any], data: SplitFeatures, metric: str, label: str
) -> dict[str, Any] | str:
    """The worth of each vector by `metric` on `data`, or why it cannot be measured. The adapter's
    prompt is changed by it."""
    from tqdm import tqdm

    assert adapter.prompt is not None
    vectors = adapter.prompt.vectors
    with tqdm(total=2 * vectors.shape[-2] + 1, desc=label, unit="prompt", leave=False) as bar:

        def measure(prompt: Tensor) -> float:
            adapter.set_prompt(prompt)
            bar.update()
            return measure_on(adapter, data)[metric]

        try:
            return {"metric": metric, **asdict(ablation(vectors, adapter.backbone, measure))}
        except ConfigError as error:  # a prompt that cannot be shorter; all else stays true
            return str(error)


@dataclass(frozen=True)
class Learned:
    """The prompt of one run, with the facts that make it comparable with another's."""

    run: Path
    adapter: str
    vectors: Tensor
    classes: tuple[str, ...]  # of vectors for each class; else empty

    @property
    def kind(self) -> tuple[Any, ...]:
        return self.adapter, tuple(self.vectors.shape), self.classes


def seeds(learned: Sequence[Learned], backbone: Backbone, k: int) -> list[dict[str, Any]]:
    """How much prompts agree that differ in their run alone."""
    found = []
    for kind in dict.fromkeys(one.kind for one in learned):
        same = [one for one in learned if one.kind == kind]
        if len(same) < 2:
            continue
        value = stability([one.vectors for one in same], backbone, k, "cosine", PAIRS)
        runs = [one.run.as_posix() for one in same]
        pairs = [{"runs": [runs[a], runs[b]], **asdict(v)} for (a, b), v in value.pairs.items()]
        rest = {n: asdict(getattr(value, n)) for n in ("mean", "random", "random_high")}
        about = {"adapter": kind[0], "shape": list(kind[1]), "runs": runs, "k": k, "draws": PAIRS}
        found.append({**about, "pairs": pairs, **rest})
    return found
