"""Captions that lie apart from the embeddings: `cliptune encode --embeddings ... --captions`.

Flows in: a source as `cliptune shards` reads it, of which the images are not opened. Flows out: its
captions by the images' file names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.sources.base import BadRecord, Options
from pipelines.sources.gather import Gather
from pipelines.sources.registry import SOURCES, source_format
from pipelines.sources.table import READERS
from pipelines.sources.texts import Refused, caption
from trainables.errors import DataError


def read_said(source: Path) -> Gather:
    """The captions in `source` by their image's file name, each behind the image's id and NUL."""
    how = source_format(str(source), None)
    said = Gather(_captions(source, how))
    if next(iter(said), None) is None:
        files = [p for p in source.glob("*") if p.suffix.lower() in READERS]
        such = f", such as `--captions {min(files)}`" if files else ""
        raise DataError(
            f"`--captions {source}` has no captions, read as `{how}` of `cliptune shards`: name "
            f"the file that has them{such}."
        )
    return said


def _captions(source: Path, how: str) -> Iterator[tuple[str, str]]:
    for record in SOURCES[how](str(source), Options()):
        try:
            if isinstance(record.image, BadRecord) and not record.captions:
                raise Refused(record.image.reason)
            every = [caption(text, n) for n, text in enumerate(record.captions, 1)]
        except Refused as error:
            raise DataError(f"`{source}`, `{record.id}`: {error}.") from error
        yield from ((Path(record.id).name, f"{record.id}\0{text}") for text in every)
