"""How a feature store is finished, and whether it is still as it was then.

Flows in: the folder that was written, and the flags. Flows out: `manifest.json`, last of all, with
the hash of each file and of itself, and the command that writes the store again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import console
from pipelines.encode.args import Args
from pipelines.typed import typed
from trainables.data.store import MANIFEST, hashes, read_manifest
from trainables.errors import DataError
from trainables.files import sha256_file, write_hashed

OURS = ("*.safetensors", "*.ids.json", "records/*", "backbone/*")  # what is read of a store
ELSEWHERE = ("workers", "gpus", "wait", "batch_size", "activations_gb")  # nothing depends on them


def write_manifest(folder: Path, args: Args, about: Mapping[str, Any]) -> None:
    """Write the manifest: the store is finished."""
    known = {f"{split}.safetensors": one["sha256"] for split, one in about["splits"].items()}
    paths = sorted(path for pattern in OURS for path in folder.glob(pattern))
    names = [path.relative_to(folder).as_posix() for path in paths]
    files = {name: known.get(name) or sha256_file(folder / name) for name in names}
    command = typed("encode", *_flags(args))
    write_hashed(folder / MANIFEST, {**about, "command": command, "files": files})


def _flags(args: Args) -> Iterator[str]:
    """The flags that differ from their defaults, in a form that holds in any working directory."""
    for item in dataclasses.fields(args):
        value, name = getattr(args, item.name), item.name.replace("_", "-")
        if item.name == "backbone" and Path(value).expanduser().is_dir():
            value = Path(value).expanduser()
        value = value.absolute() if isinstance(value, Path) else value
        if item.name in ELSEWHERE or value == item.default:
            continue
        yield from (
            (f"--{name}", str(value))
            if not isinstance(value, bool)
            else (f"--{name}" if value else f"--no-{name}",)
        )


def complete(folder: Path) -> bool:
    """Whether `folder` is finished and every byte is as written; damage is said."""
    if not (folder / MANIFEST).exists():
        return False
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        console.say(f"{error.args[0].partition(' If `cliptune')[0]} The store is made anew.")
        return False
    for name, expected in hashes(manifest).items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            console.say(f"{path} is missing or was altered: encoding what is not as it was.")
            return False
    return True
