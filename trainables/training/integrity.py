"""Whether a checkpoint's folder is whole, and as it was written.

Flows in: a folder. Flows out: nothing, or what is wrong with it, by file.
"""

from __future__ import annotations

from pathlib import Path

from trainables.errors import CheckpointError, CliptuneError
from trainables.files import JSON, read_json, sha256_file, sha256_json


def verify(folder: Path) -> None:
    """Raise `CheckpointError` unless `folder` is complete and every byte is as it was written. A
    symbolic link, in the folder or in its place, is not followed."""
    for path in (folder, *sorted(folder.glob("*"))):
        if path.is_symlink():
            raise CheckpointError(
                f"`{path}` is a symbolic link, to `{path.readlink()}`: a checkpoint is read where "
                "it was written. Put a copy in the place of the link."
            )
    try:
        manifest = read_json(folder / "manifest.json")
        manifest.pop("sha256")  # found right by who read it, and never absent
        files: dict[str, str] = manifest["files"]
    except (CliptuneError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{folder}` is not a complete checkpoint: {error}") from None
    for name, kind in (("files", dict), ("backbone", dict), ("precision", str)):
        if not isinstance(manifest.get(name, kind()), kind):
            raise CheckpointError(
                f"`{folder / 'manifest.json'}`: `{name}` must be a JSON {JSON[kind]}, got "
                f"{manifest[name]!r:.60}."
            )
    for name, digest in files.items():
        path = folder / name
        if path.name != name or not path.is_file() or sha256_file(path) != digest:
            raise CheckpointError(f"`{path}` is missing or was altered since it was written.")


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """`folder`, or `<folder>.old` where that one is damaged, or None; and what was found wrong."""
    problems = []
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if not candidate.exists():
            continue
        try:
            verify(candidate)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return candidate, problems
    return None, problems


def digest(folder: Path) -> str:
    """One hash for all bytes of a checkpoint, without its own place on disk."""
    return sha256_json(read_json(folder / "manifest.json")["files"])
