"""Values of Python as the flags of a stage.

Flows in: keywords. Flows out: the stage's `Args`, checked as on the command line.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from pipelines.workspace import none_left_empty
from trainables.errors import CliptuneError, ConfigError

PathLike: TypeAlias = str | os.PathLike[str]
Paths: TypeAlias = PathLike | Sequence[PathLike]
Words: TypeAlias = str | Sequence[str]
Pairs: TypeAlias = Mapping[str, Any] | Words  # {"optim.lr": 1e-3}, or "optim.lr=1e-3" in words

NAMES: dict[Any, str] = {
    **{bool: "True or False", int: "a whole number", float: "a number"},
    **{str: "a text", Path: "a path", NoneType: "None"},
}


def run_stage(stage: str, given: Mapping[str, Any]) -> Any:
    """Run a stage with the flags `given`; what it returns. A command that it runs in turn and that
    fails has said why."""
    module = importlib.import_module(f"pipelines.{stage}.__main__")
    kinds = get_type_hints(module.Args)
    args = module.Args(**{name: value_of(name, kinds[name], one) for name, one in given.items()})
    try:
        with none_left_empty(getattr(args, "out", None) or Path()):
            return module.run(args)
    except SystemExit as end:
        raise CliptuneError(f"`{stage}` ended with code {end.code}; it says why above.") from None


def value_of(name: str, kind: Any, given: Any) -> Any:
    """`given` as a flag of the type `kind` has it: one value stands for a list of one, a mapping
    for words with `=`, a text for a path.

    >>> value_of("set", tuple[str, ...], {"optim.lr": 1e-3, "adapter.n_ctx": 8})
    ('optim.lr=0.001', 'adapter.n_ctx=8')
    >>> value_of("out", Path, "runs/mine")
    PosixPath('runs/mine')
    """
    if get_origin(kind) is not tuple:
        return _one(name, kind, given)
    if isinstance(given, Mapping):
        given = [f"{key}={_word(value)}" for key, value in given.items()]
    elif isinstance(given, str | os.PathLike) or not isinstance(given, Iterable):
        given = [given]
    return tuple(_one(name, get_args(kind)[0], value) for value in given)


def _word(value: Any) -> str:
    """As it is typed behind `=`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(_word, value))
    return "none" if value is None else str(value)


def _one(name: str, kind: Any, given: Any) -> Any:
    rules: list[str] = []
    for one in [kind] if get_origin(kind) is Literal else get_args(kind) or [kind]:
        if get_origin(one) is Literal:
            if given in get_args(one):
                return given
            rules += [repr(choice) for choice in get_args(one)]
            continue
        rules.append(NAMES[one])
        if one is Path and isinstance(given, str | os.PathLike):
            return Path(given)
        if one is float and isinstance(given, int | float) and not isinstance(given, bool):
            return float(given)
        if one is str and isinstance(given, os.PathLike):
            return os.fspath(given)
        if isinstance(given, one) and (one is bool or not isinstance(given, bool)):
            return given
    rule = " or ".join(filter(None, [", ".join(rules[:-1]), rules[-1]]))
    raise ConfigError(f"`{name}` must be {rule}, got {given!r}.")
