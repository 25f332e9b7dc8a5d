"""Errors in the flags of `cliptune tune` by themselves, found in half a second.

Flows in: the flags. Flows out: nothing, or the error that `flags.check` would raise. That one runs
after torch, transformers and Ray are imported, which takes ten times as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.capacity import check_gpus
from pipelines.records.kinds import check_log
from pipelines.tune.study.limits import read_limits
from search_spaces.registry import SPACES
from trainables.errors import CliptuneError, ConfigError, unknown

if TYPE_CHECKING:
    from pipelines.tune.args import Args


def check_first(args: Args) -> None:
    if args.adapter != ("auto",):
        for name in args.adapter:
            if name not in SPACES:
                raise ConfigError(unknown("adapter", name, SPACES))
    if len(set(args.adapter)) < len(args.adapter):
        raise CliptuneError(f"`--adapter` must name each adapter once, got {list(args.adapter)}.")
    check_gpus(args.gpus, args.workers_per_trial, "workers-per-trial")
    read_limits(args.limit)
    check_log(args.log)
    _check_scheduler(args)
    if args.folds:
        _check_folds(args)


def _check_scheduler(args: Args) -> None:
    """Raise for a flag that belongs to another scheduler."""
    kind, where = args.scheduler, f"with `--scheduler {args.scheduler}`"
    if args.retain and kind not in ("pbt", "pb2"):
        if kind not in ("asha", "none"):
            rule = "must be none beside `--retain`, whose two goals stop no trial early"
            raise ConfigError(f"`--scheduler` {rule}, got {kind}.")
        kind, where = "none", "beside `--retain`, which stops no trial early"
    for flag, kinds in (
        ("interval", ("pbt", "pb2")),
        ("grace", ("asha", "hyperband", "median")),
        ("eta", ("asha", "hyperband")),
        ("brackets", ("asha",)),
    ):
        value, default = getattr(args, flag), getattr(type(args), flag)
        if value != default and kind not in kinds:
            raise ConfigError(f"`--{flag}` must be {default} {where}, got {value}.")


def _check_folds(args: Args) -> None:
    """Raise for flags that cannot go with a trial of several runs at once."""
    if args.draw is None:
        raise ConfigError(f"`--folds` must be 0 without `--draw`, got {args.folds}.")
    if args.scheduler in ("pbt", "pb2"):
        raise ConfigError(
            f"`--folds` must be 0 with `--scheduler {args.scheduler}`, got {args.folds}."
        )
    for flag, value in (("fuse", args.fuse), ("workers-per-trial", args.workers_per_trial)):
        if value > 1:
            raise ConfigError(f"`--{flag}` must be at most 1 with `--folds`, got {value}.")
