"""Put images into classes: those that a run was trained on, or others that you name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from pipelines.console import say
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.using.files import Faults
    from pipelines.using.model import Model
    from trainables.classes import Classes


@dataclass(frozen=True)
class Args:
    images: Positional[tuple[Path, ...]]
    """Image files; a folder stands for the images in it, at any depth. Or finished embeddings:
    files or folders of such, or a store that was made of them."""
    run: Path | None = None
    """Folder of a study or of a training run: its best adapter decides."""
    backbone: str = ""
    """Instead of a run: a CLIP as it is, a directory in Hugging Face layout or a Hub id."""
    revision: str | None = None
    """The commit (40 hex digits) of a Hub id."""
    classes: tuple[str, ...] = field(default_factory=tuple)
    """Names of classes to choose among, instead of the run's own."""
    template: str = ""
    """What stands around a name of `--classes`. Default: the run's own, or "a photo of a {}."."""
    top: int = 3
    """Classes shown for each image."""
    json: bool = False
    """Print JSON and nothing else."""


def run(args: Args) -> None:
    if not args.images:
        raise ConfigError(
            "`cliptune classify` takes image files, got none: they come before `--classes`."
        )
    if args.top < 1:
        raise ConfigError(f"`--top` must be at least 1, got {args.top}.")
    if args.template and not args.classes:
        raise ConfigError("`--template` is for `--classes`: a run's own classes have their words.")
    from pipelines.using.files import Faults, find
    from pipelines.using.model import Source, open_model

    source, faults = Source(args.run, args.backbone, args.revision), Faults()
    model = open_model(source, "classification", "retrieval")
    classes = _classes(args, model)
    rows = classify(model, find(args.images, faults), classes, args.top, faults)
    if args.json:
        say(json.dumps(rows + faults.as_json(), indent=1))
    else:
        for row in rows:
            best = ", ".join(f"{one['name']} {one['probability']:.3f}" for one in row["classes"])
            say(f"{row['path']}  {best}")
        say(f"next: {source.then}")
    faults.leave()


def _classes(args: Args, model: Model) -> Classes:
    """The classes to choose among, which the adapter must be able to tell apart."""
    from pipelines.using.words import classes_of

    own = model.classes
    if not args.classes:
        if own is None:
            raise ConfigError(
                f"`--classes` must name what to choose among: `{model.name}` was "
                "trained without classes."
            )
        return own
    if not model.adapter.open_classes:
        known = f"{len(own)} classes" if own else "classes"
        raise ConfigError(
            f"`--classes` cannot be asked of `{model.name}`: it knows only the {known} that it was "
            "trained on. Leave `--classes` out, or give a run of another adapter."
        )
    return classes_of(args.classes, args.template or (own.template if own else ""))


def classify(
    model: Model, paths: list[Path], classes: Classes, top: int, faults: Faults
) -> list[dict[str, Any]]:
    """Each good image with its `top` likeliest classes."""
    from pipelines.using.embedding import embed_files
    from trainables.predict import score

    rows = []
    for names, data in embed_files(model.adapter, paths, faults, "classify"):
        logits = model.adapter.tau * score(model.adapter, data, classes)  # (N, C)
        shares, labels = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        for path, share, label in zip(names, shares[:, :top], labels[:, :top], strict=True):
            found = [
                {"name": classes.names[n], "probability": p}
                for n, p in zip(label.tolist(), share.tolist(), strict=True)
            ]
            rows.append({"path": str(path), "classes": found})
    return rows


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("classify")
