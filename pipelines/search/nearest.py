"""What is nearest to a query among image files, by an index that is kept, or among embeddings.

Flows in: a model, paths and embedded queries. Flows out: `Found`, for each query its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipelines.search.index import Indexed, index_files
from pipelines.search.ranking import Query, embedded, matched, rank
from pipelines.use.files import Faults
from pipelines.use.given import is_given
from pipelines.use.model import Model


@dataclass(frozen=True)
class Found:
    """What a search found among `searched` images; `index` is there where they were files."""

    queries: list[Query]
    searched: int
    index: Indexed | None


def nearest(
    model: Model | None,
    paths: Sequence[Path],
    texts: Sequence[str],
    asked: Tensor,
    top: int,
    home: Path | None,
    faults: Faults,
) -> Found:
    """The `top` nearest of the images at `paths` to each of Q queries (Q, e), called `texts`. Files
    are embedded once and kept in `home`; of finished embeddings, whose path stands alone, nothing
    is kept, and without a model their cosines rank."""
    if model is None or is_given(paths[0]):
        blocks = embedded(model, paths[0], asked.shape[1])
        return Found(*rank(blocks, texts, asked, top), None)
    index = index_files(model, paths, home, faults)
    return Found(matched(index.paths, index.top(asked, top), texts), len(index.paths), index)
