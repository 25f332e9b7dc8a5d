"""The images that are served: how they are called, what is known of them, and their bytes.

Flows in: a folder of images, or a feature store with the shards that it was made of. Flows out:
names, fields to filter by, embeddings by a model, and files. A name that is not in the list has no
file, so no request can reach outside of it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines.search.exact import Rows
from pipelines.search.graph import drawn, graph_of
from pipelines.search.index import Indexed, index_files
from pipelines.search.kept import hash_of
from pipelines.serve.fields import fields_of
from pipelines.use.files import Faults, find_images
from pipelines.use.model import Model
from pipelines.use.queries import adapt_texts, embed_words
from trainables.data.made_once import alone
from trainables.data.shards import POOL, RECORDS, ShardSet
from trainables.data.store import find_store, read_manifest
from trainables.errors import DataError
from trainables.features.features import open_features
from trainables.features.split import SplitFeatures
from trainables.media.image_headers import BadImage, read_file
from trainables.models.backbone import Backbone
from trainables.training.predict import embed_images


class Gallery(ABC):
    """N images by name."""

    def __init__(self, place: Path, names: Sequence[str], fields: pa.Table) -> None:
        self.place = place
        self.names = tuple(names)  # N, each once
        self.fields = fields  # N rows
        self.row_of = {name: row for row, name in enumerate(self.names)}

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The image file called `name`. Raises `BadImage` where it cannot be read any more, and
        `KeyError` where none is called so."""

    @abstractmethod
    def embedded(
        self, model: Model, frozen: Backbone, home: Path, approximate: bool
    ) -> tuple[Indexed, Tensor]:
        """The images as `model` sees them, which adapts `frozen`, and of each the row of its name
        (n,). What takes long is kept in `home`; with `approximate`, a graph of what is large."""


class Photos(Gallery):
    """The images in a folder, at any depth, called by their path in it. Links out of it are left
    out."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"`--images` must be a folder of images, got `{folder}`.")
        self.root = folder.resolve()
        found = [path for path in find_images(folder, Faults()) if self._inside(path)]
        if not found or found == [folder]:
            raise DataError(
                f"`{folder}` holds no images. Finished embeddings are served as the store that "
                "`cliptune encode --embeddings` makes of them: `--store`."
            )
        names = [path.relative_to(folder).as_posix() for path in found]
        super().__init__(folder, names, fields_of(folder, names))

    def _inside(self, path: Path) -> bool:
        real = os.path.realpath(path)  # resolve() does not end where links are a circle
        return Path(real).is_relative_to(self.root)

    def read(self, name: str) -> bytes:
        path = self.place / self.names[self.row_of[name]]
        if not self._inside(path):  # since it was listed
            raise BadImage("a link out of the folder")
        return read_file(path)

    def embedded(
        self, model: Model, frozen: Backbone, home: Path, approximate: bool
    ) -> tuple[Indexed, Tensor]:
        del frozen
        paths = [self.place / name for name in self.names]
        index = index_files(model, paths, home, Faults(), approximate)
        rows = [self.row_of[path.relative_to(self.place).as_posix()] for path in index.paths]
        return index, torch.tensor(rows, dtype=torch.int64)


class Stored(Gallery):
    """Train and val of a feature store, called by their ids. Test stays sealed."""

    def __init__(self, folder: Path) -> None:
        self.store = find_store(folder)
        manifest = read_manifest(self.store)
        own = self.store / RECORDS
        self.shards = ShardSet.open(own if own.is_dir() else Path(manifest["shards"]))
        self.splits = [POOL] if POOL in manifest["splits"] else [*manifest["splits"]]
        rows = [
            {"id": row["id"], "split": split, "class": row["class_name"]}
            for split in self.splits
            for row in self.shards.rows(self._opened(split), ["id", "class_name"])
        ]
        table = pa.Table.from_pylist(
            rows, pa.schema([(name, pa.string()) for name in ("id", "split", "class")])
        )
        self.files = [file for split in self.splits for file in self._files(split)]
        groups = [
            (file, group, about.row_group(group).num_rows)
            for file in self.files
            for about in [pq.read_metadata(file)]
            for group in range(about.num_row_groups)
        ]
        self.groups = [(file, group) for file, group, _ in groups]
        self.starts = [0, *accumulate(rows for _, _, rows in groups)][:-1]
        super().__init__(folder, table["id"].to_pylist(), table.drop_columns("id"))

    def _opened(self, split: str) -> str:
        return "train" if split == POOL else split

    def _files(self, split: str) -> list[Path]:
        return self.shards.files(self._opened(split))

    def read(self, name: str) -> bytes:
        row = self.row_of[name]
        if self.shards.embedded:
            raise BadImage("finished embeddings have no pictures")
        place = bisect_right(self.starts, row) - 1
        file, group = self.groups[place]
        with pq.ParquetFile(file, pre_buffer=False) as shard:
            column = shard.read_row_group(group, columns=["image"])["image"]
        return column[row - self.starts[place]].as_py()

    def embedded(
        self, model: Model, frozen: Backbone, home: Path, approximate: bool
    ) -> tuple[Indexed, Tensor]:
        made_with = read_manifest(self.store)["backbone"]["fingerprint"]
        if made_with != frozen.fingerprint:
            raise DataError(
                f"`{self.place}` was made with another frozen model than the runs' own: "
                f"fingerprint {made_with[:12]}, expected {frozen.fingerprint[:12]}."
            )
        parts = [open_features(self.store, split, frozen) for split in self.splits]
        embeds = torch.cat([embed_images(model.adapter, part).cpu() for part in parts])
        paths, rows, graph = [Path(name) for name in self.names], Rows.of(embeds), None
        if approximate:  # all else that takes long is in the store
            folder, captions = home / model.sees, partial(_captions, model, parts[-1])
            with alone(folder / "graph.lock") as locked:
                known_by = partial(_known_by, embeds)
                graph = graph_of(folder, rows, known_by, captions, locked)
        return Indexed(paths, rows, None, 0, {}, None, graph), torch.arange(len(embeds))


def _known_by(embeds: Tensor, rows: int) -> str:
    return hash_of(embeds[:rows])


def _captions(model: Model, data: SplitFeatures) -> Tensor:
    """Some captions of a split, as `model` reads them: (Q, e)."""
    some = drawn(len(data.caption_rows))
    if model.backbone.kind == "embeddings":
        return adapt_texts(model.adapter, data.text_embeds()[some])
    texts = data.texts()
    return embed_words(model.adapter, [texts[row] for row in some.tolist()])
