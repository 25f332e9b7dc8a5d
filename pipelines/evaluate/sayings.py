"""Captions beside their pictures: the best and the worst of the captioner that was chosen on val.

Flows in: the captions of several models for a split, and the split's rows. Flows out: JSON-ready
examples with small JPEG pictures, several in a row for a clip. A rule chooses them, not taste.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.evaluate.gallery import thumbnails
from pipelines.evaluate.protocol import Measured
from trainables.features.split import SplitFeatures

RULE = (
    "Captions shown: the images on which the selected captioner's CIDEr-D is highest, and those on "
    "which it is lowest; of equal ones the first."
)


def sayings(
    names: Sequence[str],
    models: Sequence[Measured],
    chosen: int,
    data: SplitFeatures,
    rows: Iterator[dict[str, Any]],
    count: int,
) -> list[dict[str, Any]]:
    """`count` images, half of them the best of model `chosen`, then the worst; `rows` are the
    split's, with the columns of the gallery, and are read once."""
    values = models[chosen].values["cider_d"]
    best = values.argsort(descending=True, stable=True).tolist()[: (count + 1) // 2]
    worst = [row for row in values.argsort(stable=True).tolist() if row not in best][: count // 2]
    found: dict[int, dict[str, Any]] = {}
    kinds = dict.fromkeys(best, "best") | dict.fromkeys(worst, "worst")
    wanted = {data.ids[row]: row for row in kinds}
    references = data.texts_of_images()
    for record in rows:
        if record["id"] in wanted:
            row = wanted[record["id"]]
            found[row] = {
                "id": record["id"],
                "kind": kinds[row],
                "thumbs": thumbnails(record["image"]),
                "references": references[row],
                "said": [
                    {
                        "name": name,
                        "text": model.said[row],
                        "cider_d": round(float(model.values["cider_d"][row]), 4),
                    }
                    for name, model in zip(names, models, strict=True)
                ],
            }
    return [found[row] for row in kinds]
