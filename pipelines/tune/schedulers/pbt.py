"""Population-based training: which member takes whose place, and with which values.

Flows in: the values of the members of a population at one epoch, and a seed. Flows out: the
exploits. All functions are pure. PBT (Jaderberg et al. 2017, arXiv:1711.09846) by the rules of Ray
Tune's `PopulationBasedTraining`: each of the lowest quarter takes the weights and the values of one
of the highest, drawn at random, and each value is then drawn anew or multiplied by 0.8 or 1.2. PB2
(Parker-Holder et al. 2020, arXiv:2002.02518) chooses the values by a Gaussian process of the gain
in each interval.
"""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from optuna.distributions import FloatDistribution

from search_spaces.common import Space, log_float
from trainables.config import TrainConfig, flatten

QUANTILE, RESAMPLE, FACTORS = 0.25, 0.25, (1.2, 0.8)
# Where a space has no range of its own for a field that may change.
RANGES: dict[str, FloatDistribution] = {
    "optim.lr": log_float(1e-5, 0.1),
    "optim.weight_decay": log_float(1e-4, 0.3),
    "loss.label_smoothing": FloatDistribution(0.0, 0.2),
    "loss.hardness": FloatDistribution(0.0, 2.0),
    "temperature.scale": log_float(5.0, 100.0),
}
Ranges: TypeAlias = Mapping[str, FloatDistribution]


@dataclass(frozen=True)
class Member:
    """A member of a population, at an epoch that all have reached."""

    number: int
    kind: str  # only members of one adapter can take each other's weights
    score: float
    values: Mapping[str, float | None]  # those that may change, as they hold now
    ranges: Ranges  # of each of them
    best: float  # that the weights' lineage ever had
    gains: Sequence[Gain] = ()  # of its own intervals, for PB2


@dataclass(frozen=True)
class Gain:
    """The gain of an interval: it began at `before`, and trained until `epoch` with `values`."""

    epoch: int
    before: float
    values: Mapping[str, float | None]
    gained: float  # an epoch


@dataclass(frozen=True)
class Exploit:
    """Member `number` goes on as `donor` with other values."""

    number: int
    donor: int
    values: dict[str, float] = field(default_factory=dict)


def changing(config: TrainConfig, fixed: Mapping[str, object], space: Space) -> Ranges:
    """The fields that a population varies: all that may change and have an effect."""
    seen = {
        "optim.lr": True,
        "optim.weight_decay": True,
        "loss.label_smoothing": config.task != "captioning",
        "loss.hardness": config.task == "retrieval" and config.loss.hard_negatives == "reweight",
        "temperature.scale": config.task != "captioning"
        and config.temperature.policy in ("fixed", "cosine"),
    }
    found = {}
    for name, is_seen in seen.items():
        own = space.get(name)
        if is_seen and name not in fixed:
            found[name] = own if isinstance(own, FloatDistribution) else RANGES[name]
    return found


def values_of(config: TrainConfig, ranges: Ranges) -> dict[str, float | None]:
    flat = flatten(config)
    return {name: flat[name] for name in ranges}  # type: ignore[misc]


def quantiles(members: Sequence[Member]) -> tuple[list[Member], list[Member]]:
    """The lowest and the highest of a population, the lowest first."""
    ranked = sorted((m for m in members if not math.isnan(m.score)), key=lambda m: m.score)
    if len(ranked) < 2:
        return [], []
    count = min(math.ceil(len(ranked) * QUANTILE), len(ranked) // 2)
    return ranked[:count], ranked[-count:]


def exploits(members: Sequence[Member], seed: str, model: bool = False) -> list[Exploit]:
    """The members that go on as another; `model` for PB2. The member whose lineage had the best
    value of all keeps its place, even if it is low now: its checkpoint may be the result."""
    draw = random.Random(seed)
    first = max(members, key=lambda m: (m.best, -m.number), default=None)
    found = []
    for kind in dict.fromkeys(m.kind for m in members):
        own = [m for m in members if m.kind == kind]
        lowest, highest = quantiles(own)
        chosen: list[dict[str, float]] = []
        for member in lowest:
            donor = draw.choice(highest)
            values = explore(donor.values, donor.ranges, draw)
            if model:
                values = modelled(own, donor, chosen, draw) or values
            chosen.append(values)
            if member is not first:
                found.append(Exploit(member.number, donor.number, values))
    return found


def explore(
    values: Mapping[str, float | None], ranges: Ranges, draw: random.Random
) -> dict[str, float]:
    """PBT's new values: drawn anew, or moved by a fifth, within their ranges. Values that cannot be
    moved, 0 and a backbone's own temperature, are drawn anew."""
    new = {}
    for name, space in ranges.items():
        if draw.random() < RESAMPLE or not values[name]:
            new[name] = _sample(space, draw)
        else:
            new[name] = (values[name] or 0.0) * draw.choice(FACTORS)
        new[name] = min(max(new[name], space.low), space.high)
    return new


def _sample(space: FloatDistribution, draw: random.Random) -> float:
    if space.log:
        return math.exp(draw.uniform(math.log(space.low), math.log(space.high)))
    return draw.uniform(space.low, space.high)


def modelled(
    members: Sequence[Member],
    donor: Member,
    chosen: Sequence[Mapping[str, float]],
    draw: random.Random,
) -> dict[str, float]:
    """PB2's new values, by Ray's model of the gains; empty before the donor has gains. `chosen` are
    the values of the same epoch."""
    from ray.tune.schedulers.pb2 import _select_config

    ranges = donor.ranges

    def fits(gain: Gain) -> bool:
        return gain.values.keys() == ranges.keys() and None not in gain.values.values()

    known_gains = (g for m in members for g in m.gains if fits(g))
    gains = sorted(known_gains, key=lambda g: g.epoch)
    own = [g for g in donor.gains if fits(g)]
    chosen = [one for one in chosen if one.keys() == ranges.keys()]
    if not own or len(gains) < 2:
        return {}

    def place(values: Mapping[str, float | None]) -> list[float]:
        return [
            math.log(max(values[name] or 0.0, space.low)) if space.log else values[name] or 0.0
            for name, space in ranges.items()
        ]

    bounds = {
        name: (math.log(one.low), math.log(one.high)) if one.log else (one.low, one.high)
        for name, one in ranges.items()
    }
    known = np.array([[g.epoch, g.before, *place(g.values)] for g in gains])
    gained = np.array([g.gained for g in gains])
    current = np.array([place(one) for one in chosen]) if chosen else None
    newest = np.array([own[-1].epoch, own[-1].before])
    with _seeded(draw.getrandbits(32)):
        found = _select_config(known, gained, current, newest, bounds, num_f=2)
    new = {}
    for (name, space), place_found in zip(ranges.items(), found, strict=True):
        value = math.exp(place_found) if space.log else float(place_found)
        new[name] = min(max(value, space.low), space.high)
    return new


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context for Ray's search of the model's maximum, which draws from NumPy's global stream:
    the stream is left as it was. It also hides warnings, about fits to few gains that are good
    enough and about SciPy's flags."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(state)
