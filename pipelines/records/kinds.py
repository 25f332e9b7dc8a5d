"""The names of `--log`, for flags and their first check.

Flows in: names. Flows out: nothing, or an error, before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from trainables.errors import CliptuneError, ConfigError

Log = Literal["mlflow", "wandb"]


def check_log(names: Sequence[Log]) -> None:
    """Raise where a keeper is named twice, or its package is not installed."""
    if len(set(names)) < len(names):
        raise ConfigError(f"`--log` must name each keeper once, got {list(names)}.")
    for name in names:
        if find_spec(name) is None:
            raise CliptuneError(
                f"`--log {name}` needs a package that is not installed: "
                f"pip install 'cliptune[{name}]'."
            )
