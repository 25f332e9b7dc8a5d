"""Parquet shards: checked records of images and words, as the `shards` stage wrote them.

Flows in: a folder of `<split>-00000.parquet` files and their manifest. Flows out: rows, one image
each, in order and one row group at a time. The test split opens only for the holder of a `Seal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.data.verified import intact
from trainables.errors import DataError, unknown
from trainables.files import read_hashed, sha256_json, understood

T = TypeVar("T")
FORMAT = "cliptune-shards-1"
SPLITS = ("train", "val", "test")
RECORDS = "records"  # the shards, without images, inside a store of finished embeddings
POOL = "pool"  # all rows of a source that draws divide
CAPTION_COLUMNS = ("id", "captions", "class_name", "classes")  # what `captions_of` reads
ENTRY = {"file": str, "split": str, "rows": int, "sha256": str}  # of a shard in the manifest
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # the original file, undecoded
        pa.field("width", pa.int32(), nullable=False),  # after the EXIF orientation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("class_name", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),  # of `image`
        pa.field("classes", pa.list_(pa.string())),  # where there are several, and no label
    ]
)


@dataclass(frozen=True)
class Seal:
    """Permission to read the test split. Only `evaluate` creates one, and says why; and the
    recorder of how well searches do."""

    reason: str


@dataclass(frozen=True)
class ShardSet:
    """A complete folder of shards."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> ShardSet:
        """The shards in `folder`; a missing, unfinished or foreign folder is a `DataError`."""
        folder = Path(folder).resolve()
        folder = _records(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise DataError(f"`{folder}` holds no finished shards: it has no manifest.json.")
        help = f"If `{_maker(folder)}` wrote it, the same command makes it anew."
        found = read_hashed(path, FORMAT, help, splits=dict, shards=list, classes=dict)
        with understood(path):
            parts: list[tuple[Mapping[str, Any], Mapping[str, type]]] = [
                *((shard, ENTRY) for shard in found["shards"]),
                *((counts, {"images": int}) for counts in found["splits"].values()),
                ({"notes": {}} | found, {"notes": dict}),
            ]
            for part, kinds in parts:
                for name, kind in kinds.items():
                    if not isinstance(part[name], kind):
                        raise TypeError(f"`{name}`, {part[name]!r:.60}")
        return cls(folder, found)

    @property
    def digest(self) -> str:
        """The hash of the shard list: equal exactly where every row of every split is equal."""
        return sha256_json(self.manifest["shards"])

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        """`{"train": {"images": n, "captions": m}, ...}`, the splits that have rows."""
        splits: dict[str, dict[str, int]] = dict(self.manifest["splits"])
        return dict.fromkeys(SPLITS, splits[POOL]) if self.pooled else splits

    @property
    def pooled(self) -> bool:
        """Whether rows are in no split until a draw takes some: train, val and test are then all
        the whole, and the rows that a draw leaves are its test."""
        return POOL in self.manifest["splits"]

    @property
    def embedded(self) -> bool:
        """Whether the rows came as finished embeddings: then there are no images."""
        return bool(self.manifest.get("embedded"))

    @property
    def templates(self) -> list[str]:
        """The templates whose class texts came as embeddings; empty: any template will do."""
        return list(self.manifest.get("templates", []))

    @property
    def name(self) -> str:
        return str(self.manifest.get("name", self.folder.name))

    @property
    def classes(self) -> dict[str, int]:
        """Class names and their labels; empty for a source of captions alone."""
        return dict(self.manifest["classes"])

    @property
    def notes(self) -> dict[str, int]:
        """Counts worth knowing, such as `clips`; a note that is absent counts 0."""
        return dict(self.manifest.get("notes", {}))

    def files(self, split: str, seal: Seal | None = None) -> list[Path]:
        """The files of `split`, each checked against its hash in the manifest."""
        if split not in SPLITS:
            raise DataError(unknown("split", split, SPLITS))
        if split == "test" and not isinstance(seal, Seal):
            raise DataError("the `test` split is sealed: only `cliptune evaluate` opens it.")
        own = POOL if self.pooled else split
        return [self._checked(s) for s in self.manifest["shards"] if s["split"] == own]

    def embeddings(self, split: str, seal: Seal | None = None) -> Path:
        """The file of a split's finished embeddings; train's and val's are in the store around
        these shards."""
        self.files(split, seal)
        if self.pooled:
            return self.folder.parent / f"{POOL}.safetensors"
        return (self.folder if split == "test" else self.folder.parent) / f"{split}.safetensors"

    def damaged(self) -> list[Path]:
        """The files that are not there, or not as they were written."""
        wrong = []
        for shard in self.manifest["shards"]:
            try:
                self._checked(shard)
            except DataError:
                wrong.append(self.folder / shard["file"])
        return wrong

    def _checked(self, shard: dict[str, Any]) -> Path:
        path = self.folder / shard["file"]
        if path.parent != self.folder or not path.is_file():
            raise DataError(f"`{path}` is missing; run `{_maker(self.folder)}` again.")
        if not intact(path, shard["sha256"]):
            raise DataError(f"`{path}` was changed or damaged; run `{_maker(self.folder)}` again.")
        return path

    def rows(
        self, split: str, columns: Sequence[str] | None = None, seal: Seal | None = None
    ) -> Iterator[dict[str, Any]]:
        """The rows of `split` in order, with `columns` or all; one row group is in memory."""
        for name in columns or ():
            if name not in SCHEMA.names:
                raise DataError(unknown("column", name, SCHEMA.names))
        files = self.files(split, seal)  # raised here, not at the first row
        return _rows(files, list(columns) if columns is not None else None)


def _maker(folder: Path) -> str:
    """The command that writes shards here."""
    return "cliptune encode" if folder.name == RECORDS else "cliptune shards"


def _records(folder: Path) -> Path:
    """The shards inside a store of finished embeddings, or inside the only store in `folder`."""
    if (folder / RECORDS).is_dir():
        return folder / RECORDS
    found = [] if (folder / "manifest.json").exists() else list(folder.glob(f"*/{RECORDS}"))
    return found[0] if len(found) == 1 else folder


def _rows(files: Sequence[Path], columns: list[str] | None) -> Iterator[dict[str, Any]]:
    for path in files:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).to_pylist()


def captions_of(row: Mapping[str, Any]) -> list[str]:
    """A row's captions; an image that only has classes gets "a photo of a {class name}."."""
    if row["captions"]:
        return list(row["captions"])
    if row["class_name"]:
        return [f"a photo of a {row['class_name']}."]
    if classes := row.get("classes"):
        return [f"a photo of a {name}." for name in classes]
    raise DataError(f"image `{row['id']}` has neither a caption nor a class name.")


def chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """`rows` in lists of `size`, the last one shorter."""
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk
