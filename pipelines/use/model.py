"""What is used: a run's best adapter, or a bare backbone.

Flows in: `--run`, or `--backbone` and `--revision`. Flows out: a `Model` that can do what its
command asks for. For a run of another task that is refused before any weight is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.console import word
from pipelines.evaluate.calibration import calibrate_rest
from pipelines.runs.contestants import Contestant, read_contest
from pipelines.runs.package import is_package, read_package
from trainables.adapters.base import Adapter
from trainables.config import Task
from trainables.errors import ConfigError
from trainables.features.classes import Classes
from trainables.features.features import backbone_of
from trainables.features.frames import STILLS, Frames
from trainables.features.manifest import frames_of
from trainables.files import sha256_json
from trainables.hardware import default_device, of_store, resolved
from trainables.media.preprocess import decoder_versions
from trainables.models.backbone import Backbone
from trainables.models.cleaning import versions
from trainables.models.load import load_backbone
from trainables.training.integrity import digest
from trainables.training.predict import in_use

ZERO_SHOT = "zero_shot"  # the baseline's name
# For each task, what its adapters do and the command that lets them.
USES = {
    "retrieval": ("finds images by words", "cliptune search 'WORDS' --images DIR --run {}"),
    "classification": ("tells its own classes apart", "cliptune classify IMAGE --run {}"),
    "captioning": ("writes captions", "cliptune caption IMAGE --run {}"),
}


@dataclass(frozen=True)
class Source:
    """Where the model comes from, as a command's flags name it."""

    run: Path | None = None
    backbone: str = ""
    revision: str | None = None

    def __post_init__(self) -> None:
        if (self.run is None) == (not self.backbone):
            got = "both" if self.backbone else "neither"
            raise ConfigError(f"`--run` or `--backbone` must name the model, got {got}.")
        if self.revision is not None and not self.backbone:
            raise ConfigError("`--revision` is of a `--backbone`; a run knows its own.")

    @property
    def flags(self) -> str:
        """As the user would type it again."""
        if self.run is not None:
            return f"--run {word(self.run)}"
        return f"--backbone {word(self.backbone)}" + (
            f" --revision {self.revision}" * bool(self.revision)
        )

    @property
    def then(self) -> str:
        """The command that says how good the model is, or makes a better one."""
        if self.run is None:
            return (
                "cliptune shards --source YOUR_DATA --out shards, to adapt the model to your data"
            )
        measured = (self.run / "result.json").exists()
        return f"cliptune {'report' if measured else 'evaluate'} {self.flags}"


@dataclass(frozen=True)
class Model:
    """An adapter in eval mode, and what its run says of how it is used."""

    name: str
    adapter: Adapter[Any]
    identity: str  # another one when any number that it gives can differ
    sees: str  # the same of what it makes of images: adapters that leave them alone share it
    classes: Classes | None  # that it was trained on
    seen: Frames = STILLS  # how its run saw clips

    @property
    def backbone(self) -> Backbone:
        return self.adapter.backbone


def open_model(source: Source, *tasks: str, load: Callable[..., Backbone] = load_backbone) -> Model:
    """The model, of one of `tasks`; the first is what a bare backbone is taken for. `load` is for
    who has the backbone maybe already."""
    if source.run is None:
        device = default_device()
        how = (device, of_store("auto", device))
        backbone = load(source.backbone, source.revision, *how)
        return zero_shot(
            backbone, "classification" if tasks[0] == "classification" else "retrieval"
        )
    if is_package(source.run):
        return _of_package(source.run, tasks, load)
    contest = read_contest(source.run, only_best=True)
    best = contest.best
    check_task(source.run, contest.task, tasks)
    backbone = backbone_of(contest.features, default_device(), load)
    (adapter,) = replace(contest, contestants=[best]).load(backbone)
    calibrate_rest(contest, [adapter], needed=False)
    classes = adapter.classes or (contest.draw.classes if contest.draw else None)
    return _model(best.name, adapter, best.identity(), classes, frames_of(contest.features))


def zero_shot(backbone: Backbone, task: Task) -> Model:
    """The backbone as it is."""
    bare = Contestant(ZERO_SHOT)
    return _model("zero-shot", bare.load(backbone, task), bare.identity(), None)


def _of_package(folder: Path, tasks: tuple[str, ...], load: Callable[..., Backbone]) -> Model:
    package = read_package(folder)
    check_task(folder, package.task, tasks)
    adapter = package.load(load)
    checkpoint = digest(folder / "adapter")
    return _model(package.name, adapter, checkpoint, adapter.classes, package.frames)


def _model(
    name: str,
    adapter: Adapter[Any],
    checkpoint: str,
    classes: Classes | None,
    seen: Frames = STILLS,
) -> Model:
    frozen = adapter.backbone
    both = (frozen.precision, resolved(adapter.train_config.precision, frozen.device))
    identity = sees = _identity(checkpoint, frozen, *both)
    if _leaves_images(adapter):
        sees = _identity(ZERO_SHOT, frozen, frozen.precision)
    return Model(name, adapter, identity, sees, classes, seen)


def _leaves_images(adapter: Adapter[Any]) -> bool:
    """Whether images become what they become without it: it hands back what it is given."""
    given = torch.zeros(1, adapter.backbone.embed_dim, device=adapter.backbone.device)
    with in_use(adapter):
        return adapter.image_block is None and adapter.embed_images(given) is given


def check_task(run: Path, task: str, wanted: tuple[str, ...]) -> None:
    """Raise where a run of `task` cannot do what those of the `wanted` tasks do."""
    if task in wanted:
        return
    does, use = USES[task]
    raise ConfigError(
        f"`{run}` is a run of {task}: it {does}. Use `{use.format(run)}`, or give a run that "
        f"{USES[wanted[0]][0]}."
    )


def _identity(checkpoint: str, backbone: Backbone, *precisions: str) -> str:
    """`precisions`: those that it is computed in."""
    parts = [checkpoint, backbone.fingerprint, asdict(backbone.preprocess), decoder_versions()]
    parts += [cleaning] if (cleaning := versions(backbone.cleaning)) else []
    parts += [sorted({*precisions})] if "bf16" in precisions else []
    return sha256_json(parts)[:16]
