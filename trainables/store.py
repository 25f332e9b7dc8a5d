"""Where a feature store lies. Torch is not needed to say that there is none."""

from __future__ import annotations

from pathlib import Path

from trainables.errors import DataError


def find_store(folder: Path) -> Path:
    """`folder` if it is a finished store, or the only one in it."""
    if (folder / "manifest.json").is_file():
        return folder
    found = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"`{folder}` holds no finished features: run `cliptune encode`.")
    raise DataError(f"`{folder}` holds several stores, name one: {', '.join(map(str, found))}.")
