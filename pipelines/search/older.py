"""An index of the first format, whose rows are taken over into one of today's.

Flows in: a folder with `files.json` and the embeddings that it names. Flows out: these, mapped, and
the names of their files.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pipelines.search.names import Names, table_of
from trainables.errors import DataError
from trainables.files import read_hashed, sha256_file, understood

FORMAT, MANIFEST = "cliptune-index-1", "files.json"


def read_older(folder: Path) -> tuple[Tensor, Names] | None:
    """Rows (N, e) and names; None where there is no such index. Raises `DataError` where a byte is
    not as it was written."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    value = read_hashed(path, FORMAT, sha256=str, embeds=str, files=list, bad=list)
    embeds = folder / f"embeds-{value['embeds']}.safetensors"
    if not embeds.is_file() or sha256_file(embeds) != value["embeds"]:
        raise DataError(f"`{embeds}` is not there, or was altered since it was written.")
    with understood(path):
        good = [
            (name, (size, changed), row, None)
            for row, (name, size, changed) in enumerate(value["files"])
        ]
        bad = [(name, (size, changed), -1, why) for name, size, changed, why in value["bad"]]
        return load_file(embeds)["embeds"], Names(table_of([*good, *bad]))
