"""The examples of a result: pictures found for captions, or captions said of pictures.

Flows in: the models as they were measured, and the split. Flows out: JSON-ready examples, and the
rule by which they were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.evaluate.gallery import COLUMNS, RULE, gallery
from pipelines.evaluate.protocol import Measured
from pipelines.evaluate.sayings import RULE as SAYINGS
from pipelines.evaluate.sayings import sayings
from pipelines.runs.contestants import Contest
from trainables.data.shards import Seal, ShardSet
from trainables.features.split import SplitFeatures


def examples(
    contest: Contest,
    models: Sequence[Measured],
    data: SplitFeatures,
    shards: ShardSet,
    seal: Seal,
    count: int,
) -> dict[str, Any]:
    """`count` examples of the chosen model; empty for classes, and for finished embeddings, which
    have no pictures."""
    chosen = next((n for n, one in enumerate(contest.contestants) if one.selected), 0)
    if not (chosen and count) or contest.draw is not None or shards.embedded:
        return {"gallery": []}
    records = shards.rows("test", COLUMNS, seal)
    if contest.task == "captioning":
        names = [one.name for one in contest.contestants]
        found = sayings(names, models, chosen, data, records, count)
        return {"rule": [SAYINGS], "gallery": [], "captions": found}
    return {"rule": [RULE], "gallery": gallery(models[0], models[chosen], data, records, count)}
