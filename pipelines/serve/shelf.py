"""The adapters that are served: each by name, all on one frozen model, with their indexes.

Flows in: folders of runs, and the gallery. Flows out: a `Shelf`, a value that never changes: runs
that came, went or were trained on make another one, which shares what is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.runs.contestants import about_files
from pipelines.runs.package import is_package
from pipelines.search.index import Indexed
from pipelines.serve.gallery import Gallery
from pipelines.use.model import ZERO_SHOT, Model, Source, open_model, zero_shot
from trainables.config import Task
from trainables.errors import ConfigError, DataError, unknown
from trainables.hardware import Resolved
from trainables.models.backbone import Backbone
from trainables.models.load import load_backbone

TASKS: tuple[Task, ...] = ("retrieval", "classification", "captioning")


@dataclass(frozen=True)
class Served:
    """One adapter, and the images as it sees them: n that can be read, and of each its row in the
    gallery (n,). Adapters of classes and captions search nothing."""

    name: str
    model: Model
    index: Indexed | None
    rows: Tensor | None

    @property
    def task(self) -> Task:
        return task_of(self.model)

    def about(self) -> dict[str, Any]:
        """As a client is told."""
        classes, graph = self.model.classes, self.index.graph if self.index else None
        return {
            **{"name": self.name, "task": self.task, "adapter": self.model.name},
            "classes": list(classes.names) if classes and self.task == "classification" else [],
            "calibrated": self.model.adapter.calibration is not None,
            "approximate": graph.about() if graph else None,
        }


@dataclass(frozen=True)
class Shelf:
    """What is served, the frozen model itself first."""

    adapters: dict[str, Served]
    frozen: Backbone

    def __getitem__(self, name: str) -> Served:
        if name not in self.adapters:
            raise ConfigError(unknown("adapter", name, self.adapters))
        return self.adapters[name]


def runs_in(given: Sequence[Path]) -> dict[str, Path]:
    """The runs by name: each of `given`, or those in it where it is a folder of runs."""
    found: dict[str, Path] = {}
    for folder in given:
        inside = [folder] if _is_run(folder) else sorted(filter(_is_run, _folders(folder)))
        if not inside:
            raise DataError(f"`--run {folder}` must be a run, or a folder of runs: it holds none.")
        for run in inside:
            name = run.resolve().name
            if name in found or name == ZERO_SHOT:
                raise ConfigError(
                    f"`--run` must be folders of different names, got `{name}` twice."
                )
            found[name] = run
    return found


def _is_run(folder: Path) -> bool:
    return is_package(folder) or bool(about_files(folder))


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def loads_once() -> Callable[..., Backbone]:
    """A `load_backbone` that has each model once, whether or not texts are mended for it."""
    known = cache(load_backbone)

    def load(
        name: str,
        revision: str | None = None,
        device: str = "cpu",
        precision: Resolved = "fp32",
        clean_text: bool = True,
    ) -> Backbone:
        found = known(name, revision, device, precision)
        return found if clean_text else replace(found, cleaning="none")

    return load


def load_shelf(
    given: Sequence[Path],
    gallery: Gallery,
    home: Path,
    load: Callable[..., Backbone],
    approximate: bool = False,
) -> Shelf:
    """Everything in `given`, the same frozen model under all of it, which `load` loads once. New
    images are embedded."""
    models: dict[str, Model] = {}
    frozen: list[Backbone] = []  # as it was loaded: an adapter's own may have its updates inside

    def loaded(*how: Any) -> Backbone:
        frozen.append(load(*how))
        return frozen[-1]

    for name, run in runs_in(given).items():
        models[name] = open_model(Source(run), *TASKS, load=loaded)
        _check_same(name, frozen[-1], next(iter(models)), frozen[0])
    models = {ZERO_SHOT: zero_shot(frozen[0], "retrieval")} | models
    indexes: dict[str, tuple[Indexed, Tensor]] = {}
    for model in models.values():
        if task_of(model) == "retrieval" and model.sees not in indexes:
            indexes[model.sees] = gallery.embedded(model, frozen[0], home, approximate)
    served = {
        name: Served(name, model, *indexes[model.sees])
        if task_of(model) == "retrieval"
        else Served(name, model, None, None)
        for name, model in models.items()
    }
    return Shelf(served, frozen[0])


def task_of(model: Model) -> Task:
    return model.adapter.train_config.task


def _check_same(name: str, own: Backbone, first: str, other: Backbone) -> None:
    if (own.fingerprint, own.precision) != (other.fingerprint, other.precision):
        raise ConfigError(
            f"`--run` must be runs on one frozen model and precision: `{name}` is on "
            f"{own.fingerprint[:12]} in {own.precision}, `{first}` on {other.fingerprint[:12]} "
            f"in {other.precision}."
        )
