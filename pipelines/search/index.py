"""The index of a search: embeddings of image files, kept so that each file is embedded once.

Flows in: a model and the files of a folder. Flows out: their embeddings, mapped, to be searched.
The index of one model holds files of any number of folders; a file whose size or time of change is
another one is embedded again, and its row before that is dead. When more are dead than alive, the
living are copied into an index of their own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from pipelines.search.codes import BLOCK
from pipelines.search.exact import Rows, Top, top
from pipelines.search.graph import Graph, graph_of
from pipelines.search.kept import Kept
from pipelines.search.names import Entry, Stamp, table_of
from pipelines.search.older import MANIFEST, read_older
from pipelines.use.embedding import embed_files
from pipelines.use.files import Faults
from pipelines.use.model import Model
from trainables.data.made_once import alone
from trainables.errors import DataError
from trainables.training.predict import embed_images

PART = 256  # images embedded between two looks at the clock
SAVE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Indexed:
    """The images of one folder."""

    paths: list[Path]  # N
    rows: Rows  # of the whole index, mapped
    places: Tensor | None  # (N,) int64, the row of each path; None: all rows, in their order
    new: int  # files embedded just now
    bad: dict[Path, str]  # files without an embedding, and why
    kept: Path | None  # where the embeddings are for the next time
    graph: Graph | None = None  # over all rows; with it, a search without a mask is approximate

    def top(self, asked: Tensor, k: int, mask: Tensor | None = None) -> Top:
        """The `k` images nearest to each query: cosines (Q, k) float32, greatest first, and their
        rows (Q, k) int64, which number `paths`. Of equal cosines the lower row is first. Exactly,
        but for what a graph misses where there is one and no `mask`.

        `asked` (Q, e) is float32, of unit length; `mask` (N,) bool leaves only the rows that it is
        true for. Where fewer than `k` are left, the answer is as narrow as they are many. Nothing
        is changed, so threads may ask at once.
        """
        graph = self.graph if mask is None else None
        if self.places is None:
            return (graph.top if graph else top)(self.rows, asked, k, mask)
        among, order = self._lying
        if graph and 2 * len(self.places) > len(among):  # else it finds mostly other rows
            return graph.top(self.rows, asked, k, among, order)
        if mask is not None:
            among = among.clone()
            among[self.places] = mask
        return top(self.rows, asked, k, among, order)

    def embeds(self, numbers: Tensor) -> Tensor:
        """The embeddings (n, e) of the `paths` with these numbers (n,)."""
        places = numbers if self.places is None else self.places[numbers]
        return self.rows.values[places]

    @cached_property
    def _lying(self) -> tuple[Tensor, Tensor]:
        """For each row of the index, whether it is one of `paths`, and which."""
        assert self.places is not None
        among = torch.zeros(len(self.rows.values), dtype=torch.bool)
        order = torch.zeros(len(self.rows.values), dtype=torch.int64)
        among[self.places] = True
        order[self.places] = torch.arange(len(self.paths))
        return among, order


def index_files(
    model: Model,
    paths: Sequence[Path],
    home: Path | None,
    faults: Faults,
    approximate: bool = False,
) -> Indexed:
    """The embeddings of `paths`, each file once; what is new is embedded, and kept in `home` if
    there is one. To `faults`, of which there are none yet, goes what is new and bad. With
    `approximate`, a graph is kept beside what is large."""
    width = model.backbone.embed_dim
    files = {_key(path): path for path in reversed(paths)}
    stamps = {name: _stamp(files[name]) for name in reversed(files)}
    with ExitStack() as stack:
        folder, locked = None if home is None else home / model.sees, False
        if folder is not None:
            locked = stack.enter_context(alone(folder / "index.lock"))
            if not locked:
                print(f"warning: `{folder}` cannot be written: nothing is kept", file=sys.stderr)
        kept = None if folder is None else _opened(folder, width, locked)
        if not locked and (kept is None or _fresh(kept, stamps)):  # mapped, it outlives its folder
            aside = Kept.new(Path(stack.enter_context(TemporaryDirectory())), width)
            if kept is not None:
                aside.copy(kept.rows().values, kept.names)
            kept = aside
        assert kept is not None
        new = _fill(model, files, stamps, kept, faults)
        if locked and kept.said.rows > 2 * kept.names.living + BLOCK:
            before, kept = kept, Kept.new(kept.folder, width)
            kept.copy(before.rows().values, before.names)
        found = _answer(files, list(stamps), kept, new, folder if locked else None)
        if folder is None or not approximate:
            return found
        return replace(found, graph=graph_of(folder, found.rows, kept.known_by, None, locked))


def _opened(folder: Path, width: int, locked: bool) -> Kept | None:
    """The index in `folder`, also of the format before; an empty one where a byte is not as it was
    written. Who may not write gets none where there is nothing to read."""
    try:
        kept = Kept.open(folder, width)
        if kept is not None:
            if kept.checked and locked:
                kept.write()
            return kept
        older = read_older(folder)
    except DataError:
        print(f"warning: the index in `{folder}` is damaged: it is made anew", file=sys.stderr)
        older = None
    if not locked:
        return None
    kept = Kept.new(folder, width)
    if older is not None:
        kept.copy(*older)
        (folder / MANIFEST).unlink()
    return kept


def _fresh(kept: Kept, stamps: dict[str, Stamp]) -> list[str]:
    """The names of files that are not known as they are now."""
    same = kept.names.unchanged(kept.names.places(list(stamps)), list(stamps.values()))
    return [name for name, known in zip(stamps, same, strict=True) if not known]


def _fill(
    model: Model, files: dict[str, Path], stamps: dict[str, Stamp], kept: Kept, faults: Faults
) -> int:
    """Embed what is new, and say how many files that were."""
    fresh = [files[name] for name in _fresh(kept, stamps)]
    entries: list[Entry] = []
    new, saved = 0, time.monotonic()
    for paths, data in embed_files(model.adapter, fresh, faults, "index", PART):
        names = [_key(path) for path in paths]
        entries += [(n, stamps[n], row, None) for row, n in enumerate(names, kept.said.rows)]
        kept.add(embed_images(model.adapter, data).cpu())
        new += len(paths)
        if time.monotonic() - saved > SAVE_EVERY:
            kept.commit(table_of(entries))
            entries, saved = [], time.monotonic()
    bad = {_key(path): reason for path, reason in faults.reasons.items()}
    entries += [(name, stamps[name], -1, reason) for name, reason in bad.items()]
    if entries:
        kept.commit(table_of(entries))
    return new


def _answer(
    files: dict[str, Path], names: list[str], kept: Kept, new: int, folder: Path | None
) -> Indexed:
    places = kept.names.places(names)
    found = kept.names.column("row")[places] if len(kept.names.table) else places
    rows = np.where(places < 0, -1, found)
    poor = np.flatnonzero((rows < 0) & (places >= 0))
    reasons = kept.names.reasons(places[poor])
    living = rows[rows >= 0]
    whole = np.array_equal(living, np.arange(kept.said.rows))
    return Indexed(
        paths=[files[name] for name, row in zip(names, rows, strict=True) if row >= 0],
        rows=kept.rows(),
        places=None if whole else torch.from_numpy(living),
        new=new,
        bad={files[names[at]]: why for at, why in zip(poor, reasons, strict=True)},
        kept=folder,
    )


def _key(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # `Path.absolute` keeps `..`


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:  # gone since the folder was listed: reading it will say so
        return 0, 0
    return found.st_size, found.st_mtime_ns
