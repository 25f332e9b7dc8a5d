"""Values of Python as the flags of a stage.

Flows in: keywords. Flows out: the stage's `Args`, checked as on the command line.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from pipelines.door import expected, sentence
from pipelines.workspace import none_left_empty
from trainables.errors import CliptuneError, ConfigError

PathLike: TypeAlias = str | os.PathLike[str]
Paths: TypeAlias = PathLike | Iterable[PathLike]
Words: TypeAlias = str | Iterable[str]
Pairs: TypeAlias = Mapping[str, Any] | Words  # {"optim.lr": 1e-3}, or "optim.lr=1e-3" in words

PAIRS = {"columns", "data", "limit", "search", "set", "words"}  # flags of words with `=`
NAMES: dict[Any, str] = {
    **{bool: "True or False", int: "a whole number", float: "a number"},
    **{str: "a text", Path: "a path", NoneType: "None"},
}
MAKE: dict[Any, Callable[[Any], Any]] = {Path: Path, str: os.fspath, float: float}


@contextmanager
def in_words() -> Iterator[None]:
    """What the machine says of a file, of its memory or of Ray, as a `CliptuneError`."""
    try:
        yield
    except CliptuneError:
        raise
    except Exception as error:
        if not expected(error):
            raise
        raise CliptuneError(sentence(error)) from error


def run_stage(stage: str, given: Mapping[str, Any]) -> Any:
    """Run a stage with the flags `given`; what it returns. A command that it runs in turn and that
    fails has said why."""
    args = flags_of(stage, given)
    module = importlib.import_module(f"pipelines.{stage}.__main__")
    try:
        with in_words(), none_left_empty(getattr(args, "out", None) or Path()):
            return module.run(args)
    except SystemExit as end:
        raise CliptuneError(f"`{stage}` ended with code {end.code}; it says why above.") from None


def flags_of(stage: str, given: Mapping[str, Any]) -> Any:
    """The `Args` of a stage, which check their own ranges."""
    args = importlib.import_module(f"pipelines.{stage}.__main__").Args
    kinds = get_type_hints(args)
    return args(**{name: value_of(name, kinds[name], one) for name, one in given.items()})


def path_of(name: str, given: Any) -> Path:
    """`given` as a path."""
    return Path(value_of(name, Path, given))


def value_of(name: str, kind: Any, given: Any) -> Any:
    """`given` as a flag of the type `kind` has it: one value stands for a list of one, a mapping
    for words with `=`, a text for a path.

    >>> value_of("set", tuple[str, ...], {"optim.lr": 1e-3, "adapter.n_ctx": 8})
    ('optim.lr=0.001', 'adapter.n_ctx=8')
    >>> value_of("out", Path, "runs/mine")
    PosixPath('runs/mine')
    """
    given = _plain(given)
    if get_origin(kind) is not tuple:
        return _one(name, kind, given)
    if isinstance(given, Mapping) and name in PAIRS:
        given = [f"{key}={_word(name, value)}" for key, value in given.items()]
    elif isinstance(given, str | bytes | os.PathLike | Mapping) or not isinstance(given, Iterable):
        given = [given]
    return tuple(_one(name, get_args(kind)[0], _plain(value)) for value in given)


def _plain(given: Any) -> Any:
    """A single number of NumPy's or torch's as Python's own."""
    return given.item() if getattr(given, "shape", None) == () else given


def _word(name: str, given: Any) -> str:
    """As it is typed behind `=`."""
    value = _plain(given)
    if isinstance(value, Mapping):
        raise ConfigError(f"`{name}` must be a flat mapping, got {value!r:.80} as a value.")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(_word(name, one) for one in value)
    return "none" if value is None else str(value)


def _one(name: str, kind: Any, given: Any) -> Any:
    rules: list[str] = []
    for one in [kind] if get_origin(kind) is Literal else get_args(kind) or [kind]:
        if get_origin(one) is Literal:
            if isinstance(given, str) and given in get_args(one):
                return given
            rules += [repr(choice) for choice in get_args(one)]
            continue
        rules.append(NAMES[one])
        if _fits(one, given):
            return MAKE[one](given) if one in MAKE else given
    rule, got = " or ".join(filter(None, [", ".join(rules[:-1]), rules[-1]])), repr(given)
    raise ConfigError(f"`{name}` must be {rule}, got {' '.join(got.split()):.80}.")


def _fits(kind: Any, given: Any) -> bool:
    if isinstance(given, bool):
        return kind is bool
    if kind not in (str, Path):
        return isinstance(given, int | float if kind is float else kind)
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        return False
    if kind is Path:
        return text != "" and "\0" not in text
    return text.encode(errors="ignore").decode() == text  # no bytes of a name that is not UTF-8
