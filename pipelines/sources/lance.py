"""A Lance table: the folder `NAME.lance`, with columns as in any other table.

Images are bytes in a column, or paths relative to the table, to a folder beside it or to
`--images`. Lance itself is `pip install cliptune[lance]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.sources.base import Options, RawRecord
from pipelines.sources.fields import merge
from pipelines.sources.table import records
from trainables.errors import DataError

if TYPE_CHECKING:
    from pipelines.sources.delimited import Row


def read(source: str, options: Options) -> Iterator[RawRecord]:
    path = table_of(Path(source)) or Path(source)
    return merge(records(_rows(path), path, None, "", options))


def table_of(path: Path) -> Path | None:
    """The table in a folder: the folder itself, or the only table in it, as in a database of
    LanceDB's."""
    if (path / "_versions").is_dir() or (path.suffix == ".lance" and path.is_dir()):
        return path
    found = sorted(path.glob("*.lance"))
    return found[0] if len(found) == 1 else None


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        import lance
    except ImportError as error:
        raise DataError(
            f"`{path}` is a Lance table, and Lance is not installed: `pip install cliptune[lance]`."
        ) from error
    number = 0
    try:
        for batch in lance.dataset(str(path)).to_batches(batch_size=16):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise DataError(
            f"`{path}` is not a valid Lance table after row {number:,}: {said}"
        ) from error
