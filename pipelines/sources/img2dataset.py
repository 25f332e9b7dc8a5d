"""What img2dataset wrote: `00000.tar`, `00000.parquet` and `00000_stats.json`, and so on.

The images are in the tars (`--output_format webdataset`), in the Parquet files' column `jpg`
(`parquet`), or in folders (`files`: `00000/000000000.jpg`, `.txt`, `.json`). Addresses that gave no
image have another status than `success` in the Parquet files; they are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.sources import sidecar, webdataset
from pipelines.sources.base import Options, RawRecord
from pipelines.sources.fields import merge, record_of
from trainables.errors import DataError

_ENCODED = ("jpg", "png", "webp")  # columns with the images


def read(source: str, options: Options) -> Iterator[RawRecord]:
    root = Path(source)
    tables = sorted(root.glob("*.parquet"))
    for path in tables:
        yield from merge(_rows(path, options))
    if webdataset.tars(source):
        yield from webdataset.read(source, options)
    elif any(one.is_dir() for one in root.iterdir()):
        yield from sidecar.read(source, options)
    elif not tables:
        raise DataError(f"`{source}` has neither tars, Parquet files nor folders of images.")


def is_output(path: Path) -> bool:
    """Whether a folder has the statistics that img2dataset writes for each part."""
    return any(path.glob("[0-9]*_stats.json"))


def _rows(path: Path, options: Options) -> Iterator[RawRecord]:
    """The images in a Parquet file, if it has any, and the count of addresses without one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            here = file.schema_arrow.names
            image = next((name for name in _ENCODED if name in here), None)
            wanted = [image, "key", "caption", "status"] if image else ["status"]
            number = 0
            for batch in file.iter_batches(16, columns=[n for n in wanted if n in here]):
                for row in batch.to_pylist():
                    number += 1
                    if row.get("status", "success") != "success":
                        options.tally.left_out[f"img2dataset: {row['status']}"] += 1
                    elif image:
                        options.tally.read["row"] += 1
                        values = {"image": row[image], "caption": row.get("caption")}
                        values |= {"id": row["key"]} if row.get("key") else {}
                        where = f"{path.stem} {number}"
                        yield record_of(values, where, path.parent, options.notes, path.stem)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"`{path}` is not valid Parquet: {error}") from error
