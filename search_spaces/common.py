"""Ranges that several adapters share. Pure data: nothing here runs, trains or knows a model.

A space is `{dotted config field: distribution}`. It holds at most ten fields, those that move the
result most, and always contains the adapter's published recipe, so that a search can start there.
Every other field of the config can be searched in the same way.
"""

from __future__ import annotations

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Space = dict[str, BaseDistribution]
Spaces = dict[str, Space]  # by task: "retrieval", "classification"
# By a field and its value, the fields that then have no effect: trials that differ in these alone
# are one.
Idle = dict[str, dict[str | int | float | bool | None, tuple[str, ...]]]


def choice(*values: str | int | float | bool | None) -> CategoricalDistribution:
    return CategoricalDistribution(values)


def log_float(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


# What any contrastive adapter asks: how many negatives, how many steps, how sharp a softmax.
CONTRASTIVE: Space = {
    "batch_size": choice(32, 64, 128, 256),
    "optim.schedule": choice("constant", "linear", "cosine"),
    "loss.captions_per_image": IntDistribution(1, 3),
    "loss.hard_negatives": choice("none", "reweight", "mined"),
    "temperature.policy": choice("fixed", "learned", "cosine", "adaptive"),
    "temperature.scale": choice(None, 10.0, 20.0, 50.0),  # None: the backbone's own, CLIP's is 100
}

LABEL_SMOOTHING: Space = {"loss.label_smoothing": FloatDistribution(0.0, 0.2)}

# Of a method that chooses what it needs by itself: how often it is measured, which is once.
ALONE: Space = {"patience": choice(0)}

# What CoOp and its followers fix: their optimizer is part of the method, its rate is not.
PROMPT: Space = {
    "optim.lr": log_float(2e-4, 0.2),
    "adapter.init_std": log_float(0.005, 0.1),
}
