"""Errors meant for the user: one sentence, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CliptuneError(Exception):
    """A user's mistake or a fault of the input. The message: the subject, the rule, the value."""


class ConfigError(CliptuneError):
    """A configuration value outside its rule, or an unknown field."""


class DataError(CliptuneError):
    """An input file, row or field that breaks its rule."""


class CheckpointError(CliptuneError):
    """A checkpoint that is missing, truncated, altered, or of another run."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """The sentence for an unknown `kind` called `name`: the nearest choice and all of them."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"unknown {kind} `{name}`.{hint} Choices: {', '.join(f'`{k}`' for k in known)}."
