"""Where a feature store lies, and whether it is as it was written; without torch.

Flows in: the store's folder. Flows out: its manifest, and its files once their hashes are found to
be the manifest's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.data.verified import intact
from trainables.errors import DataError
from trainables.files import read_hashed, understood

FORMAT = "cliptune-features-2"
MANIFEST = "manifest.json"


def find_store(folder: Path) -> Path:
    """`folder` if it is a finished store, or the only one in it."""
    if (folder / MANIFEST).is_file():
        return folder
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"`{folder}` holds no finished features: run `cliptune encode`.")
    raise DataError(f"`{folder}` holds several stores, name one: {', '.join(map(str, found))}.")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished store.

    >>> read_manifest(features)["splits"]["train"]["images"]
    24
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"`{folder}` holds no finished features (no {MANIFEST}).")
    help = "If `cliptune encode` wrote it, the same command makes it anew."
    found = read_hashed(path, FORMAT, help, key=str, shards=str, backbone=dict, splits=dict)
    with understood(path):
        for name in ("name", "revision", "fingerprint"):
            found["backbone"][name]
        for split in found["splits"].values():
            split["images"] + split["truncated_captions"]
    return found


def check_file(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """The path of file `name` of a store. Raises `DataError` unless the file has the hash that the
    manifest says. (Manifests of old stores have hashes of fewer files.)"""
    path, expected = folder / name, hashes(manifest).get(name)
    if not path.is_file() or (expected and not intact(path, expected)):
        raise DataError(f"`{path}` is missing or damaged; run {again(manifest)}.")
    return path


def hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file in a store."""
    splits = manifest["splits"].items()
    old = {f"{name}.safetensors": one["sha256"] for name, one in splits if "sha256" in one}
    return {**old, **manifest.get("files", {})}


def again(manifest: Mapping[str, Any]) -> str:
    """The command that makes a store anew, in words."""
    command = manifest.get("command")
    return f"`{command}`" if command else "`cliptune encode` again"
