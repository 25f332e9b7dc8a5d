"""What a run reached, epoch by epoch.

Flows in: a run's folder. Flows out: its rows of metrics, from a file whose hash is right where
there is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.files import read_json, read_jsonl, sha256_file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of the run in `folder`: those of its last checkpoint, which a hash protects. Where
    the checkpoint is not whole, or an older version kept no rows there, those of
    `metrics.jsonl`."""
    last = folder / "last"
    try:
        known = read_json(last / "manifest.json")["files"]["state.json"]
        if sha256_file(last / "state.json") == known:
            return list(read_json(last / "state.json")["rows"])
    except (DataError, OSError, KeyError, TypeError):
        pass
    return read_jsonl(folder / "metrics.jsonl")
