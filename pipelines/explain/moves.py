"""How adapting moved the embeddings of val: maps before and after, and neighbours' votes.

Flows in: a trained adapter, zero-shot, and val. Flows out: plain values for explain.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.explain.projection import (
    Floats,
    Ints,
    Method,
    align,
    neighbour_hits,
    project,
    trustworthiness,
)
from trainables.adapters.base import Adapter
from trainables.errors import DataError
from trainables.features.classes import Classes
from trainables.features.split import SplitFeatures
from trainables.statistics.bootstrap import Bootstrap, differing
from trainables.training.predict import embed_images, in_use, predict

IMAGES = 1000  # on a map, at most
PAIRS = 300  # images with a caption on a map, at most
RESAMPLES = 2000
VOTES = 10  # neighbours that vote, at most


@dataclass(frozen=True)
class Embeds:
    """Val in the joint space, all of unit length."""

    images: Floats  # (N, e)
    texts: Floats  # (C, e) of the classes, or (N, e) of the first caption of each image


def class_texts(adapter: Adapter[Any], classes: Classes) -> Tensor:
    """The classes as the adapter embeds them: (C, e). CoCoOp's are those by the context as it is
    learned."""
    backbone = adapter.backbone
    frozen = classes.text_embeds(backbone, adapter.frozen_words) if adapter.frozen_text else None
    words = classes.tokens(backbone, adapter.class_words, adapter.added_tokens)
    with in_use(adapter):
        return F.normalize(adapter.embed_text(words, frozen).float(), dim=-1)


def embed(adapter: Adapter[Any], data: SplitFeatures) -> Embeds:
    if data.classes is not None:
        images, texts = embed_images(adapter, data), class_texts(adapter, data.classes)
    else:
        found = predict(adapter, data)
        first = torch.searchsorted(data.caption_rows, torch.arange(len(data.groups)))
        images, texts = found.image_embeds, found.text_embeds[first.to(found.text_embeds.device)]
    return Embeds(images.cpu().numpy(), texts.cpu().numpy())


def moved(before: Embeds, after: Embeds) -> dict[str, float]:
    """The mean cosine distance between the places of images, and of texts, before and after."""

    def mean(old: Floats, new: Floats) -> float:
        if np.array_equal(old, new):
            return 0.0
        return float((1 - (old.astype(np.float64) * new).sum(1)).mean())

    return {
        "images": mean(before.images, after.images),
        "texts": mean(before.texts, after.texts),
    }


def votes(before: Embeds, after: Embeds, labels: Ints, groups: Tensor) -> dict[str, Any]:
    """How often an image's neighbours vote for its class, before and after, paired by image.

    As many vote as a class has other images, at most `VOTES`.
    """
    k = max(1, min(VOTES, len(labels) // len(np.unique(labels)) - 1))
    distinct, clusters = groups.unique(return_inverse=True)
    bootstrap = Bootstrap(len(distinct), RESAMPLES)
    hits = [neighbour_hits(each.images, labels, k) for each in (before, after)]
    means = [float(hit.mean()) for hit in hits]
    drawn = [bootstrap.mean(torch.from_numpy(hit), clusters) for hit in hits]
    old, new = map(torch.from_numpy, hits)
    images = differing(old, new, clusters)
    gap = bootstrap.difference(means[1] - means[0], drawn[1], drawn[0], images)
    return {
        "k": k,
        "before": asdict(bootstrap.interval(means[0], drawn[0])),
        "after": asdict(bootstrap.interval(means[1], drawn[1])),
        "difference": asdict(gap),
    }


def shown(images: int, paired: bool) -> Ints:
    """The images on the map: all, or a sample of them, in order."""
    most = PAIRS if paired else IMAGES
    order = np.random.default_rng(0).permutation(images)[:most]
    return np.sort(order)


def maps(
    before: Embeds, after: Embeds, rows: Ints, methods: Sequence[Method], paired: bool
) -> dict[str, Any]:
    """Images `rows` and texts on maps of each method, the later turned onto the earlier."""
    old, new = (
        np.concatenate([each.images[rows], each.texts[rows] if paired else each.texts])
        for each in (before, after)
    )
    made: dict[str, Any] = {}
    for method in methods:
        first = project(old, method, 0)
        # Where nothing moved, chance must not seem to have moved it.
        second = first if np.array_equal(old, new) else align(project(new, method, 0), first)
        made[method] = {
            when: {
                "images": _rounded(places[: len(rows)]),
                "texts": _rounded(places[len(rows) :]),
                "trustworthiness": trustworthiness(embeds, places),
            }
            for when, embeds, places in (("before", old, first), ("after", new, second))
        }
    return made


def _rounded(places: Floats) -> list[list[float]]:
    return [[round(float(x), 4), round(float(y), 4)] for x, y in places]


def compare(
    before: Embeds,
    after: Embeds,
    data: SplitFeatures,
    own: tuple[list[int], list[str]] | None,
    methods: Sequence[Method],
) -> dict[str, Any]:
    """Everything about an adapter's embeddings; `own` are classes of captioned images."""
    paired = data.classes is None
    labels, names = own or ([], [])
    if data.labels is not None and data.classes is not None:
        labels, names = data.labels.tolist(), list(data.classes.names)
    rows = shown(len(data.groups), paired)
    found: dict[str, Any] = {
        "images": len(data.groups),
        "shown": len(rows),
        "paired": paired,
        "classes": names,
        "labels": [labels[row] for row in rows] if labels else [],
        "moved": moved(before, after),
        "maps": {},
        "neighbours": None,
        "missing": "",
    }
    try:
        if labels:
            found["neighbours"] = votes(before, after, np.asarray(labels), data.groups)
        found["maps"] = maps(before, after, rows, methods, paired)
    except DataError as error:  # too few images, or all in one place: that is what there is to say
        found["missing"] = str(error)
    return found
