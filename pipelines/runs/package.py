"""A trained adapter by itself, to be put where others find it: its checkpoint, and what it is of.

Flows in: a run's best. Flows out: a folder with `adapter/`, the checkpoint as it is, and
`cliptune.json`; and from such a folder, or a repository of the Hub that holds one, a `Package`. The
features, the data and the machine that it was made on are not needed to use it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.contestants import Contest, Contestant
from trainables.adapters.base import Adapter
from trainables.config import Task, to_json
from trainables.data.store import read_manifest
from trainables.errors import ConfigError, DataError, unknown
from trainables.features.frames import Frames
from trainables.features.manifest import frames_of, precision_of
from trainables.files import read_hashed, understood, write_hashed
from trainables.hardware import default_device, of_store
from trainables.models.backbone import Backbone
from trainables.models.load import load_backbone
from trainables.training.checkpoint import load_adapter, read_config
from trainables.training.selection import METRICS

NAME, FORMAT = "cliptune.json", "cliptune-package-1"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Package:
    """An adapter's checkpoint, and the frozen model that it goes with."""

    folder: Path
    name: str
    task: Task
    backbone: dict[str, Any]  # name, revision, fingerprint, precision, and whether texts are mended
    frames: Frames

    def load(self, load: Callable[..., Backbone] = load_backbone) -> Adapter[Any]:
        """The adapter in eval mode on its frozen model, which is fetched where it is not here, by
        `load` where it may be there already."""
        of, device = self.backbone, default_device()
        precision = of_store("fp32" if of["precision"] == "fp32" else "auto", device)
        backbone = load(of["name"], of["revision"], device, precision, of["mended"])
        if backbone.fingerprint != of["fingerprint"]:
            raise DataError(
                f"`{of['name']}` has other files than the model that `{self.folder}` was trained "
                f"on: fingerprint {backbone.fingerprint[:12]}, expected {of['fingerprint'][:12]}."
            )
        return load_adapter(self.folder / "adapter", backbone)


def write_package(
    contest: Contest,
    best: Contestant,
    backbone: Backbone,
    base: str,
    revision: str | None,
    folder: Path,
) -> None:
    """`base` and `revision`: where others find the frozen model."""
    if best.folder is None:
        raise ConfigError(
            f"nothing was learned: on val no adapter beat `{best.name}`, the backbone as it is."
        )
    best.load(backbone)  # what cannot be used is not handed on
    config = to_json(read_config(best.folder))
    if (speaker := Path(str(config.get("adapter.lm") or "-"))).is_dir():
        raise ConfigError(
            f"`{best.name}` speaks by the language model in `{speaker}`, which others do not have: "
            "train it with a Hub id as `adapter.lm`."
        )
    shutil.copytree(best.folder / "best", folder / "adapter")
    frames = frames_of(contest.features)
    value = {
        "format": FORMAT,
        "adapter": best.name,
        "task": contest.task,
        "backbone": {
            **{"name": base, "revision": revision, "fingerprint": backbone.fingerprint},
            "precision": precision_of(contest.features),
            "mended": "cleaning" in read_manifest(contest.features),
        },
        "frames": {"count": frames.count, "rule": frames.rule},
    }
    write_hashed(folder / NAME, value)


def is_package(folder: Path) -> bool:
    return (folder / NAME).is_file()


def read_package(folder: Path) -> Package:
    kinds = {"backbone": dict, "frames": dict}
    about = read_hashed(folder / NAME, FORMAT, "Fetch or write it again.", **kinds)
    with understood(folder / NAME):
        if about["task"] not in METRICS:
            raise DataError(f"`{folder / NAME}`: " + unknown("task", str(about["task"]), METRICS))
        of = {key: about["backbone"][key] for key in ("name", "revision", "fingerprint")}
        of |= {key: about["backbone"][key] for key in ("precision", "mended")}
        return Package(folder, str(about["adapter"]), about["task"], of, Frames(**about["frames"]))


@contextmanager
def fetched(name: str, revision: str | None = None) -> Iterator[Path]:
    """The package in the Hub's repository `name`, at `revision` or as it is now: a copy, for the
    block, as the Hub's cache is made of links."""
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=[NAME, "adapter/*"]
        )
    except (OSError, ValueError) as error:  # no network, no such repository or commit
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"`{name}` is no folder here, and could not be fetched from the Hub: {reason}"
        ) from error
    if not is_package(Path(found)):
        raise DataError(f"`{name}` on the Hub holds no adapter of cliptune: it has no {NAME}.")
    with tempfile.TemporaryDirectory(prefix="cliptune-") as folder:
        yield Path(shutil.copytree(found, Path(folder) / "package"))
