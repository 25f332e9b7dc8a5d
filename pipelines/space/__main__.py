"""Print what a search of each adapter draws from, as YAML to edit for `cliptune tune --space`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.errors import ConfigError, DataError
from trainables.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainables.config import Task


@dataclass(frozen=True)
class Args:
    adapter: tuple[str, ...] = ()
    """Adapters whose spaces to print. Default: all that there are for the task."""
    task: Literal["auto", "retrieval", "classification", "captioning"] = "auto"
    """What they are to be tuned for; a draw makes it classification. auto: the first that all
    `--adapter` are for."""
    out: Path | None = None
    """A file to write them to; where not given they are printed."""


def run(args: Args) -> None:
    from pipelines.console import done, nothing_to_do
    from pipelines.tune.spaces import as_yaml

    adapters, task = _check(args)
    text = as_yaml(adapters, task)
    if args.out is None:
        print(text, end="")
        return
    then = f"edit it, then cliptune tune --space {args.out}"
    if not args.out.exists():
        write_bytes(args.out, text.encode())
        done([args.out], then)
    elif args.out.is_file() and args.out.read_bytes() == text.encode():
        nothing_to_do(args.out, then)
    else:
        raise DataError(f"`--out` must be a new file, got `{args.out}`, which may be edited.")


def _check(args: Args) -> tuple[Sequence[str], Task]:
    """The adapters, and the task that they are to be tuned for. Raises for adapters that are not
    known, or share no task."""
    from trainables.adapters.registry import ADAPTERS, adapters_for, make_config

    tasks: tuple[Task, ...] = ("retrieval", "classification", "captioning")
    if args.adapter in ((), ("auto",)):
        task = tasks[0] if args.task == "auto" else args.task
        return adapters_for(task), task
    for name in args.adapter:
        make_config(name, {} if args.task == "auto" else {"task": args.task})
    if len(set(args.adapter)) < len(args.adapter):
        raise ConfigError(f"`--adapter` must name each adapter once, got {list(args.adapter)}.")
    shared = [
        task for task in tasks if all(task in ADAPTERS[name].RECIPES for name in args.adapter)
    ]
    if not shared:
        named = [f"`{name}` is for {' and '.join(ADAPTERS[name].RECIPES)}" for name in args.adapter]
        raise ConfigError(f"adapters searched together must share a task: {', '.join(named)}.")
    return args.adapter, shared[0] if args.task == "auto" else args.task


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("space")
