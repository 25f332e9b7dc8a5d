"""What can be asked of the server, and what comes of it.

Flows in: a request's own words. Flows out: an `Ask`, which the engine answers or refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from trainables.metrics.calibration import Kind

What: TypeAlias = Literal["embed", "search", "classify", "caption"]
Answer: TypeAlias = dict[str, Any]  # of JSON
FAULT = "the server has a fault; its log says which."


@dataclass(frozen=True)
class Ask:
    """One wish of one adapter. The subject is `texts`, the bytes of an `image`, or the name of one
    that is served, `like`."""

    what: What
    adapter: str
    texts: tuple[str, ...] = ()
    image: bytes | None = None
    like: str = ""
    top: int = 12
    where: dict[str, Any] = field(default_factory=dict)  # of a search: only these images
    classes: tuple[str, ...] = ()  # to choose among, instead of the run's own
    template: str = ""
    confidence: float | None = None  # of the sets
    sets: Kind = "split"


@dataclass(frozen=True)
class Refused:
    """Why a request has no answer, in a sentence, with its HTTP status."""

    error: str
    status: int = 400
