"""Limits on a trial: `--limit parameters=100000 seconds=30`, read.

Flows in: words. Flows out: the most that a trial may have of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainables.errors import ConfigError, unknown

LIMITS = {"parameters": "trainable_parameters", "seconds": "seconds"}  # flag to what is noted


def read_limits(words: Sequence[str]) -> dict[str, float]:
    """The limits, by the name under which a trial notes the value.

    >>> read_limits(["parameters=100000"])
    {'trainable_parameters': 100000.0}
    """
    found: dict[str, float] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"`--limit` takes `name=most`, got {word!r}.")
        if name not in LIMITS:
            raise ConfigError("`--limit`: " + unknown("limit", name, LIMITS))
        if LIMITS[name] in found:
            raise ConfigError(f"`--limit` must name each limit once, got `{name}` twice.")
        try:
            most = float(text)
        except ValueError:
            most = math.nan
        if not 0 < most < math.inf:
            raise ConfigError(f"`--limit {name}` must be a number above 0, got {text!r}.")
        found[LIMITS[name]] = most
    return found
