"""A Hugging Face data set: a local directory or a Hub id, streamed.

`owner/name`, `owner/name:config` and `owner/name@revision` all work. Columns are matched by name as
in a table. Splits are the data set's own where it has several, or its `split` column. No code of a
data set is ever run: `datasets` reads data files only. Images that the rows only name lie in the
data set's folder, in one in it, or under `--images`. A row is of one image, as is a list of
one; a row with several is a bad record, as its captions may be of each or of all together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sources.base import ImageRoot, Options, RawRecord, with_folders
from pipelines.sources.columns import match_columns, with_names
from pipelines.sources.fields import cells, merge, path_of, record_of
from trainables.errors import DataError


def read(source: str, options: Options) -> Iterator[RawRecord]:
    splits = _load(source)
    for name, data in splits.items():
        yield from merge(_rows(source, name, data, options, several=len(splits) > 1))


def wrote(path: Path) -> bool:
    """Whether `datasets` wrote this Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"huggingface" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def commit(source: str) -> str:
    """The commit that a Hub id stands for now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, _, revision = _parts(source)
    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise DataError(f"`{source}` cannot be found on the Hugging Face Hub: {error}") from error


def _parts(source: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and revision."""
    if Path(source).exists():
        return source, None, None
    source, _, revision = source.partition("@")
    name, _, config = source.partition(":")
    return name, config or None, revision or None


def _load(source: str) -> dict[str, Any]:
    """Split name to an iterable data set."""
    import datasets

    name, config, revision = _parts(source)
    try:
        if (Path(source) / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(source))
        if (Path(source) / "state.json").is_file():
            return {"train": datasets.load_from_disk(source)}
        return dict(datasets.load_dataset(name, config, revision=revision, streaming=True))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"`{source}` cannot be opened as a data set: {error}") from error


def _rows(
    source: str, split: str, data: Any, options: Options, several: bool
) -> Iterator[RawRecord]:
    import datasets

    features = data.features or {}
    for name, feature in features.items():
        if isinstance(feature, datasets.Image | datasets.Video):  # bytes as they are, not decoded
            data = data.cast_column(name, type(feature)(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            data = data.cast_column(name, datasets.List(datasets.Image(decode=False)))
    names = list(features) or list(next(iter(data), {}))
    columns = match_columns(names, options, f"{source}, split {split}")
    label = features.get(columns["label"][0]) if "label" in columns else None
    if not isinstance(label, datasets.ClassLabel):
        first = cells(next(iter(data), {}), columns).get("label")
        columns = with_names(columns, first, options, f"{source}, split {split}")
    local = Path(source).is_dir()
    where = ImageRoot(options.images, with_folders(Path(source)) if local else [Path(source)])
    for number, row in enumerate(data, 1):
        values = cells(row, columns)
        if isinstance(label, datasets.ClassLabel) and values["label"] in range(label.num_classes):
            values["class_name"] = label.int2str(values["label"])  # -1 is a label withheld
        if several:
            values.setdefault("split", split)
        root = where.of(path_of(values["image"]) or "")
        values["image"] = _file(values["image"], root)
        yield record_of(values, f"{split}-{number}", root, options.notes, split)


def _file(image: Any, root: Path) -> Any:
    """An image that `datasets` names in its own way, as bytes or as a path relative to `root`."""
    match image:
        case {"bytes": None, "path": str(path)} if re.fullmatch(r"(zip://[^:]*::)?hf://.*", path):
            import fsspec  # type: ignore[import-untyped]

            with fsspec.open(path, "rb") as file:
                return file.read()
        case {"bytes": None, "path": str(path)} if Path(path).is_absolute():
            real, here = os.path.realpath(path), os.path.realpath(root)
            return os.path.relpath(real, here) if Path(real).is_relative_to(here) else path
    return image
