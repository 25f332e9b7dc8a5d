"""Tell a run where the features that it was trained on lie now, after they were moved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.console import done, word
from trainables.data.store import find_store, read_manifest
from trainables.errors import DataError
from trainables.files import understood, write_hashed


@dataclass(frozen=True)
class Args:
    run: Path
    """Folder of a study (`cliptune tune`) or of a single training run (`cliptune train`)."""
    features: Path
    """The same features in their new place."""


def run(args: Args) -> None:
    from pipelines.hold import hold
    from pipelines.runs.contestants import read_about

    path, about = read_about(args.run)
    new = find_store(args.features).absolute()
    key = read_manifest(new)["key"]
    with understood(path):
        old, wanted = about["features"], about["features_key"]
    if key != wanted:
        raise DataError(
            f"`{new}` has other features than those that `{args.run}` was trained on: its key is "
            f"{key}, that of `{old}` was {wanted}."
        )
    with hold(args.run):
        write_hashed(path, about | {"features": str(new)})
    done([path], f"cliptune evaluate --run {word(args.run)}")


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("relink")
