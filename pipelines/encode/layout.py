"""The layout of a folder of embeddings: its vectors, and the facts about their rows.

Flows in: the folder, in clip-retrieval's layout: `img_emb/` and `metadata/` in as many parts,
`text_emb/` with a text for each image, or with `text_metadata/` the texts of classes. Flows out:
`Given`, its parts checked against each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.encode.captions import read_said
from pipelines.encode.metadata import Rows, Table, where
from pipelines.sources.containers import ANY, SIDES, rows_of
from pipelines.sources.vectors import PICKLES, SUFFIXES, Vectors, natural, open_vectors
from trainables.errors import DataError


@dataclass(frozen=True)
class Given:
    """The vectors of images, the metadata of each, and texts: one for each image, or those of
    classes."""

    folder: Path
    images: Vectors
    table: Table | None
    pairs: Vectors | None  # a text for each image
    class_texts: Vectors | None
    class_rows: Rows  # of each class text, its `template` and `class_name`

    @property
    def paths(self) -> list[Path]:
        """All files that were read for it."""
        every = [self.images, self.pairs, self.class_texts]
        tables = [*(self.table.paths if self.table else ()), *self._class_tables()]
        return [*(part.path for one in every if one for part in one.parts), *tables]

    def where(self, number: int) -> str:
        """The file and the row in it of image `number`, as metadata has it if there are any."""
        if self.table is not None:
            return self.table.where(number)
        return where([(part.path, part.rows) for part in self.images.parts], number)

    def _class_tables(self) -> list[Path]:
        return _files(self.folder, "text_metadata", "*.parquet")


def read_layout(folder: Path, captions: Path | None = None) -> Given:
    """The contents of `folder`. `captions` names a source with captions for its images."""
    if not folder.is_dir():
        raise DataError(f"`{folder}` is no folder of embeddings.")
    paths = _files(folder, "img_emb", "*") or loose(folder)
    images = open_vectors(paths, "image") if paths else None
    if images is None:
        known = ", ".join(f"`{name}`" for name in (*SIDES["image"], *ANY))
        raise DataError(
            f"`{folder}` has no image vectors: no `img_emb/`, and no file with a single matrix of "
            f"floats, or with one (or a column of lists of floats) that is called {known}."
        )
    columns = all(path.suffix in (".parquet", ".arrow") for path in paths)
    tables = _tables(folder, "metadata") or (paths if columns else [])
    table = Table(tuple(tables)) if tables else None
    if captions is not None:
        if table is None:
            raise DataError(f"`{folder}` has no `metadata/`: captions are found by file names.")
        table = replace(table, said=read_said(captions))
    if table is not None:
        _check_parts(images, tables)
    texts, about = _vectors(folder, "text_emb"), _tables(folder, "text_metadata")
    if texts is None:  # a column, or an array, beside that of the images
        texts = open_vectors(paths, "text")
    if texts is not None and texts.width != images.width:
        raise DataError(
            f"`{texts.parts[0].path}` must have vectors of width {images.width}, as "
            f"`{images.parts[0].path.name}` has, got {texts.width}."
        )
    if texts is None:
        return Given(folder, images, table, None, None, [])
    if not about:
        _check_pairs(images, texts)
        return Given(folder, images, table, texts, None, [])
    _check_parts(texts, about)
    return Given(folder, images, table, None, texts, _class_rows(about))


def _vectors(folder: Path, name: str) -> Vectors | None:
    paths = _files(folder, name, "*")
    if not paths:
        return None
    return open_vectors(paths, "text") or open_vectors(paths, "image")


def loose(folder: Path) -> list[Path]:
    """Files of vectors in the folder itself, in `data/`, or in a data set's folders of splits."""
    for pattern in ("*", "data/*", "*/*.arrow"):
        found = [p for p in folder.glob(pattern) if p.suffix in (*SUFFIXES, *PICKLES)]
        if found:
            return sorted(found, key=natural)
    return []


def _files(folder: Path, name: str, pattern: str) -> list[Path]:
    found = (folder / name).glob(pattern)
    return sorted((p for p in found if p.is_file() and p.name[0] != "."), key=natural)


def _tables(folder: Path, name: str) -> list[Path]:
    paths = _files(folder, name, "*.parquet")
    for path in paths:
        try:
            rows_of(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"`{path}` is no valid Parquet file: {error}") from error
    return paths


def _check_parts(vectors: Vectors, tables: list[Path]) -> None:
    """Raise unless the parts have as many rows each: otherwise a row would be of another image."""
    if len(vectors.parts) != len(tables):
        raise DataError(
            f"`{tables[0].parent}` must have a part for each of the {len(vectors.parts)} in "
            f"`{vectors.parts[0].path.parent.name}`, got {len(tables)}."
        )
    _check_numbers([part.path for part in vectors.parts], tables)
    for part, path in zip(vectors.parts, tables, strict=True):
        rows = rows_of(path)
        if rows != part.rows:
            raise DataError(
                f"`{path}` must have {part.rows:,} rows, as `{part.path.name}` has, got {rows:,}."
            )


def _check_numbers(paths: Sequence[Path], beside: Sequence[Path]) -> None:
    """Parts go together by their numbers, where each name has one."""
    numbers = [[re.findall(r"\d+", path.stem) for path in some] for some in (paths, beside)]
    if any(len(found) != 1 for some in numbers for found in some):
        return
    for one, other, of_one, of_other in zip(paths, beside, *numbers, strict=False):
        if int(of_one[0]) != int(of_other[0]):
            raise DataError(
                f"`{other}` must have the number of `{one.parent.name}/{one.name}`, beside which "
                f"it comes in order, got {of_other[0]}: a part is missing."
            )


def _check_pairs(images: Vectors, texts: Vectors) -> None:
    _check_numbers(*([part.path for part in one.parts] for one in (images, texts)))
    for one, other in zip(images.parts, texts.parts, strict=False):
        if one.rows != other.rows:
            raise DataError(
                f"`{other.path}` must have {one.rows:,} rows, a text for each image of "
                f"`{one.path.name}`, got {other.rows:,}; texts of classes need `text_metadata/`."
            )
    if len(images.parts) != len(texts.parts):
        raise DataError(
            f"`{texts.parts[0].path.parent}` must have a part for each of the {len(images.parts)} "
            f"in `{images.parts[0].path.parent.name}`, got {len(texts.parts)}."
        )


def _class_rows(paths: list[Path]) -> Rows:
    rows: Rows = []
    seen: dict[tuple[str, str], str] = {}
    for path in paths:
        for number, row in enumerate(pq.read_table(path).to_pylist()):
            name, template = row.get("class_name"), row.get("template", "{}")
            if not isinstance(name, str) or not isinstance(template, str) or "{}" not in template:
                raise DataError(
                    f"`{path}`, row {number}: `class_name` and a `template` with {{}} must be "
                    f"text, got {name!r} and {template!r}."
                )
            here = f"row {number}" if len(paths) == 1 else f"`{path.name}`, row {number}"
            before = seen.setdefault((template, name), here)
            if before != here:
                raise DataError(
                    f"`{path}`, row {number}: `{name}` in `{template}` is in {before} too."
                )
            rows.append({"class_name": name, "template": template})
    return rows
