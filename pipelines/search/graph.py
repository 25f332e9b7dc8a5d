"""A graph beside an index: the nearest rows without a look at all, and how many it misses.

Flows in: the rows of an index, and what they are known by. Flows out: a `Graph`, mapped.

    graph.json           which rows it is of, its file's hash, and its measured recall; written last
    graph-60000.usearch  HNSW (Malkov & Yashunin, TPAMI 2020) over the rows as int8

A walk through the graph gathers more rows than asked for; they are scored from the float32. So
cosines and ties are those of the exact search, and only misses are possible. New rows are linked to
the old ones; a graph that is damaged, or of other rows, is made anew. A kill leaves the one before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.search.exact import Rows, Top, best, top
from pipelines.search.kept import stamp
from trainables.errors import DataError
from trainables.files import read_hashed, sha256_file, understood, write_hashed
from trainables.statistics.bootstrap import Bootstrap

FORMAT, MANIFEST = "cliptune-graph-1", "graph.json"
LEAST = 50_000  # rows; fewer are searched exactly in a few milliseconds
REACH = 512  # rows gathered for a query, and at least four for each that it wants
PART = 8192  # rows linked between two looks at the progress
NEAREST, QUERIES = 100, 200  # that recall is measured on
State = Callable[[int], str]  # what the first n rows are known by: other ones, another value
Captions = Callable[[], Tensor]  # queries (Q, e) of unit length, made where they are needed


@dataclass(frozen=True)
class Recall:
    """Of the `NEAREST` rows of a query, the share that is found: its mean over `queries`, and the
    95 % interval of that."""

    queries: int
    found: float
    low: float
    high: float


@dataclass(frozen=True)
class Graph:
    """A graph over all rows of an index."""

    links: Any  # usearch's
    recalls: dict[str, Recall]  # by the kind of queries: "images", and "captions" where there were
    alone: Lock = field(default_factory=Lock)  # usearch numbers its threads by the call

    def top(
        self,
        rows: Rows,
        asked: Tensor,
        k: int,
        mask: Tensor | None = None,
        order: Tensor | None = None,
    ) -> Top:
        """As `exact.top`, of which it may miss rows. A query for which the graph finds too few that
        `mask` is true for is answered exactly."""
        k = min(k, len(rows.values) if mask is None else int(mask.sum()))
        reach = max(REACH, 4 * k)
        if not len(asked) or reach >= len(rows.values):
            return top(rows, asked, k, mask, order)
        threads = min(len(asked), torch.get_num_threads())
        with self.alone:
            found = self.links.search(asked.numpy(), reach, threads=threads)
        answers = []
        for query, one in zip(asked, [found] if len(asked) == 1 else found, strict=True):
            chosen = torch.from_numpy(one.keys.astype(np.int64)).sort().values
            chosen = chosen if mask is None else chosen[mask[chosen]]
            if len(chosen) < k:
                cosines, numbers = top(rows, query[None], k, mask, order)
                answers.append((cosines[0], numbers[0]))
            else:
                answers.append(best(rows.values, query, chosen, k, order))
        return torch.stack([one[0] for one in answers]), torch.stack([one[1] for one in answers])

    def about(self) -> dict[str, Any]:
        """As a client is told."""
        return {"nearest": NEAREST} | {kind: asdict(one) for kind, one in self.recalls.items()}

    def told(self) -> str:
        """In a sentence, what it finds."""
        parts = [
            f"{one.found:.1%} [{100 * one.low:.1f}, {100 * one.high:.1f}] of the {NEAREST} nearest "
            f"to {one.queries} of its own {kind}"
            for kind, one in self.recalls.items()
        ]
        less = "" if "captions" in self.recalls else "; words, not measured, may find fewer"
        return f"finds {' and '.join(parts)}{less}"


def graph_of(
    folder: Path, rows: Rows, state: State, captions: Captions | None, locked: bool
) -> Graph | None:
    """The graph over `rows` in `folder`, made or grown where it is not of all of them. None where
    they are fewer than `LEAST`, or the folder is not `locked` to write what is needed.

    `captions` are more queries to measure by.
    """
    many = len(rows.values)
    if many < LEAST:
        return None
    try:
        said = _said(folder, many, state)
    except DataError as error:
        print(f"warning: the graph is made anew: {error}", file=sys.stderr)
        said = None
    if said is None or said["rows"] < many:
        if not locked:
            return None
        said = _grow(folder, rows, said, state(many), captions)
    recalls = {kind: Recall(**one) for kind, one in said["recalls"].items()}
    return Graph(_opened(folder / said["file"], view=True), recalls)


def drawn(many: int) -> Tensor:
    """Which of `many` are asked, to measure: `QUERIES` numbers, the same each time."""
    return torch.randperm(many, generator=torch.Generator().manual_seed(0))[:QUERIES]


def recall(graph: Graph, rows: Rows, asked: Tensor, own: Tensor) -> Recall:
    """How many of the nearest to `asked` (Q, e) the graph finds; the row `own` (Q,) that a query is
    itself counts as neither."""
    wanted, found = top(rows, asked, NEAREST + 1)[1], graph.top(rows, asked, NEAREST + 1)[1]
    others = wanted != own[:, None]
    others[others.all(1), -1] = False  # a query that is no row wants one less
    both = (wanted[:, :, None] == found[:, None]).any(2) & others
    shares = both.sum(1).double() / others.sum(1)
    bootstrap, value = Bootstrap(len(asked)), float(shares.mean())
    interval = bootstrap.interval(value, bootstrap.mean(shares, torch.arange(len(asked))))
    return Recall(len(asked), value, interval.low, interval.high)


def _said(folder: Path, many: int, state: State) -> dict[str, Any] | None:
    """The manifest of the graph in `folder`; None where there is none over the first of these rows.
    Raises `DataError` where a byte is not as it was written."""
    import usearch

    path = folder / MANIFEST
    if not path.is_file():
        return None
    said = read_hashed(path, FORMAT, rows=int, file=str, recalls=dict, sha256=str)
    with understood(path):
        if said["by"] != usearch.__version__ or not 0 < said["rows"] <= many:
            return None
        if said["state"] != state(said["rows"]):
            return None
        file = folder / Path(said["file"]).name
        known = said["stamp"] == stamp(file)
        if not file.is_file() or not (known or sha256_file(file) == said["file_sha256"]):
            raise DataError(f"`{file}` is not there, or was altered since it was written.")
        for one in said["recalls"].values():
            Recall(**one)
        return said


def _grow(
    folder: Path, rows: Rows, said: dict[str, Any] | None, state: str, captions: Captions | None
) -> dict[str, Any]:
    """A graph over all rows, by linking those that `said` has not; and its manifest."""
    import usearch
    from usearch.index import Index

    many, width = rows.values.shape
    before = None if said is None else folder / said["file"]
    links = Index(ndim=width, metric="ip", dtype="i8") if before is None else _opened(before)
    with tqdm(total=many, initial=len(links), unit="row", desc="graph") as bar:
        for first in range(len(links), many, PART):
            some = rows.values[first : first + PART]
            keys = np.arange(first, first + len(some), dtype=np.uint64)
            links.add(keys, some.numpy(), threads=torch.get_num_threads())
            bar.update(len(some))
    file = folder / f"graph-{many}.usearch"
    _save(links, file)
    graph, own = Graph(_opened(file, view=True), {}), drawn(many)
    recalls = {"images": recall(graph, rows, rows.values[own], own)}
    asked = captions() if captions else torch.zeros(0, width)
    if len(asked):
        recalls["captions"] = recall(graph, rows, asked, torch.full((len(asked),), -1))
    value = {
        **{"format": FORMAT, "by": usearch.__version__, "rows": many, "state": state},
        **{"file": file.name, "file_sha256": sha256_file(file), "stamp": stamp(file)},
        "recalls": {kind: asdict(one) for kind, one in recalls.items()},
    }
    write_hashed(folder / MANIFEST, value)
    for other in folder.glob("graph-*.usearch"):
        if other != file:
            other.unlink()
    return value


def _opened(file: Path, view: bool = False) -> Any:
    """The links in `file`, to search where it is a `view`, else to add to."""
    from usearch.index import Index

    links = Index.restore(str(file), view=view)
    if links is None:
        raise DataError(f"`{file}` is no graph.")
    links.expansion_search = REACH
    return links


def _save(links: Any, file: Path) -> None:
    partial = file.with_suffix(".partial")
    try:
        links.save(str(partial))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"could not write `{file}`: {error!s:.200}.") from error
