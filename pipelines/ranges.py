"""Which numbers a flag takes, declared with the flag: `trials: Annotated[int, Range(1)]`.

Flows in: a stage's `Args`. Flows out: nothing, or the error for the first value out of its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_origin, get_type_hints

from trainables.config import LARGEST
from trainables.errors import ConfigError

MANY = 10_000  # things that run, or are kept in memory, at once


@dataclass(frozen=True)
class Range:
    """The least and the greatest value that a flag takes."""

    least: float
    most: float = LARGEST


Wait = Annotated[float, Range(0)]


def check_ranges(args: Any) -> None:
    """Raise `ConfigError` for the first flag of a stage, or value of a list, out of its range."""
    for name, kind in get_type_hints(type(args), include_extras=True).items():
        if get_origin(kind) is not Annotated or not isinstance(kind.__metadata__[0], Range):
            continue
        ends, value = kind.__metadata__[0], getattr(args, name)
        for one in value if isinstance(value, tuple) else (value,):
            if not isinstance(one, int | float) or ends.least <= one <= ends.most:
                continue
            rule = f"at most {ends.most:,}" if one > ends.most else f"at least {ends.least}"
            raise ConfigError(f"`--{name.replace('_', '-')}` must be {rule}, got {one}.")
