"""Hand over the trained adapter in a form that other programs load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.console import done
from pipelines.workspace import workspace
from trainables.errors import ConfigError, DataError


@dataclass(frozen=True)
class Args:
    run: Path
    """Folder of a study (its best adapter is taken) or of a single training run."""
    out: Path
    """Folder to write; it must not exist yet."""
    merged: bool = False
    """LoRA only: a plain CLIPModel with the updates added to its weights."""


def run(args: Args) -> None:
    from pipelines.runs.contestants import read_contest
    from trainables.features.features import backbone_of
    from trainables.training.exported import loading, write_scores

    if args.out.exists():
        raise DataError(f"`{args.out}` exists already: give another `--out`.")
    contest = read_contest(args.run, only_best=True)
    best = next(one for one in contest.contestants if one.selected)
    if best.folder is None:
        raise ConfigError(
            f"`{args.run}` has nothing to export: on val no adapter beat `{best.name}`, the "
            "backbone as it is. What each adapter reached is in its best.json."
        )
    adapter: Any = best.load(backbone_of(contest.features))
    if args.merged:
        if not hasattr(adapter, "merge"):
            raise ConfigError(f"`--merged` needs a LoRA adapter, got `{best.name}`.")
        with workspace(args.out) as folder:
            wrote = adapter.merge(folder)
        done(_in_place(wrote, folder, args.out), f'CLIPModel.from_pretrained("{args.out}")')
        return
    frozen = adapter.needs(adapter.train_config) == "embeddings"
    with workspace(args.out) as folder:
        wrote = adapter.export(folder)
        how = [adapter.loading(args.out)] if wrote else []
        if adapter.classes is not None and (wrote or frozen):
            wrote += write_scores(adapter, folder)
            how.append(loading(args.out))
        if not wrote:
            raise ConfigError(
                f"`{best.name}` has no format of another library: load "
                f"`{(best.folder or args.run) / 'best'}` with "
                "`trainables.training.checkpoint.load_adapter`."
            )
    done(_in_place(wrote, folder, args.out), " and ".join(how))


def _in_place(wrote: Sequence[Path], folder: Path, out: Path) -> list[Path]:
    return [out / path.relative_to(folder) for path in wrote]


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("export")
