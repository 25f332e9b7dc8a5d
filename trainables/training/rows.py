"""What a run reached, epoch by epoch, from what tells whether it is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.files import read_json, read_jsonl, sha256_file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of the run in `folder`: those that its last checkpoint has, under a hash; where that
    one is not whole, or an older version kept none, those of `metrics.jsonl`."""
    last = folder / "last"
    try:
        known = read_json(last / "manifest.json")["files"]["state.json"]
        if sha256_file(last / "state.json") == known:
            return list(read_json(last / "state.json")["rows"])
    except (DataError, OSError, KeyError, TypeError):
        pass
    return read_jsonl(folder / "metrics.jsonl")
