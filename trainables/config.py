"""The configuration of one training run: frozen dataclasses in, validated once, at the door.

Every field has a dotted name (`optim.lr`, `adapter.n_ctx`), and that name is the same in a search
space, on the command line, in `config.json` and in an error. Nothing else is configurable.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from trainables.changes import Change, read_changes, write_changes
from trainables.errors import ConfigError, unknown

Value: TypeAlias = str | int | float | bool | None
Task: TypeAlias = Literal["retrieval", "classification", "captioning"]
LARGEST = 2**31 - 1  # no number of a flag or a field means anything from here on


def check(rule: bool, name: str, text: str, value: object) -> None:
    """Raise `ConfigError` in the project's one form unless `rule` holds."""
    if not rule:
        raise ConfigError(f"`{name}` must be {text}, got {value!r}.")


@dataclass(frozen=True)
class LossConfig:
    """The contrastive objective.

    `infonce`: symmetric InfoNCE (CLIP, Radford et al. 2021) with true multi-positive targets.
    `siglip`: pairwise sigmoid loss (Zhai et al. 2023).
    Hard negatives: `reweight` multiplies the in-batch negatives by exp(hardness x logit), scaled to
    a mean of 1 (Robinson et al. 2021), `mined` puts each image's nearest images of the feature
    store into its batch.
    """

    kind: Literal["infonce", "siglip"] = "infonce"
    label_smoothing: float = 0.0
    captions_per_image: int = 1  # captions drawn for each image of a batch
    hard_negatives: Literal["none", "reweight", "mined"] = "none"
    hardness: float = 0.5  # reweight: the concentration on hard negatives, 0 is none
    mined_per_image: int = 1  # mined: neighbours brought into the batch with each anchor
    mined_pool: int = 20  # mined: drawn from this many nearest images

    def __post_init__(self) -> None:
        check(
            0 <= self.label_smoothing < 1, "loss.label_smoothing", "in [0, 1)", self.label_smoothing
        )
        check(
            self.captions_per_image >= 1,
            "loss.captions_per_image",
            "at least 1",
            self.captions_per_image,
        )
        check(self.hardness >= 0, "loss.hardness", "at least 0", self.hardness)
        check(self.mined_per_image >= 1, "loss.mined_per_image", "at least 1", self.mined_per_image)
        check(
            self.mined_pool >= self.mined_per_image,
            "loss.mined_pool",
            "at least `loss.mined_per_image`",
            self.mined_pool,
        )


@dataclass(frozen=True)
class TemperatureConfig:
    """The logit scale tau, by which similarities are multiplied; rules in `schedules.py`.

    `fixed` keeps `scale`; `learned` trains its logarithm, clamped to [`low`, `high`]; `cosine`
    moves from `scale` to `final` over the run; `adaptive` follows the batch's own entropy.
    """

    policy: Literal["fixed", "learned", "cosine", "adaptive"] = "fixed"
    scale: float | None = None  # None: the backbone's own trained value
    final: float = 50.0  # cosine: the scale at the end
    low: float = 1.0
    high: float = 100.0
    target_entropy: float = 0.3  # adaptive: wanted entropy of the softmax, as a share of log(batch)
    rate: float = 0.05  # adaptive: how far log(tau) moves a step for an entropy error of 1

    def __post_init__(self) -> None:
        check(self.scale is None or self.scale > 0, "temperature.scale", "above 0", self.scale)
        check(self.final > 0, "temperature.final", "above 0", self.final)
        check(
            0 < self.low <= self.high,
            "temperature.low",
            "above 0 and at most `temperature.high`",
            self.low,
        )
        check(
            0 < self.target_entropy < 1,
            "temperature.target_entropy",
            "in (0, 1)",
            self.target_entropy,
        )
        check(self.rate > 0, "temperature.rate", "above 0", self.rate)


@dataclass(frozen=True)
class OptimConfig:
    """Fused AdamW, or SGD with momentum 0.9, and the learning-rate schedule.

    `coop` is the schedule of CoOp and what followed it (`schedules.py`), with its own warm-up.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.01
    schedule: Literal["constant", "linear", "cosine", "coop"] = "constant"
    warmup: float = 0.0  # share of all steps
    clip_norm: float = 1.0  # 0 switches clipping off

    def __post_init__(self) -> None:
        check(self.lr > 0, "optim.lr", "above 0", self.lr)
        check(self.weight_decay >= 0, "optim.weight_decay", "at least 0", self.weight_decay)
        check(0 <= self.warmup < 1, "optim.warmup", "in [0, 1)", self.warmup)
        check(self.clip_norm >= 0, "optim.clip_norm", "at least 0", self.clip_norm)


@dataclass(frozen=True)
class TrainConfig:
    """One training run of one adapter: with the data and the backbone it fixes the result."""

    name: str  # of the adapter, a key of `trainables.adapters.registry.ADAPTERS`
    adapter: Any  # that adapter's own frozen `Config`
    task: Task = "retrieval"  # or images among the classes of a draw, or captions in new words
    loss: LossConfig = field(default_factory=LossConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch_size: int = 32  # images a step, over all workers
    epochs: int = 10
    patience: int = 0  # epochs without a better val metric before stopping; 0: never
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    changes: str = ""  # of values while it trains, as `3: optim.lr=0.001; 5: optim.lr=0.0005`

    def __post_init__(self) -> None:
        least = 2 if self.task == "retrieval" else 1  # a caption needs another to be told from
        check(self.batch_size >= least, "batch_size", f"at least {least}", self.batch_size)
        check(self.epochs >= 0, "epochs", "at least 0", self.epochs)
        check(self.patience >= 0, "patience", "at least 0", self.patience)
        for change in read_changes(self.changes):
            self._check_change(change)

    def _check_change(self, change: Change) -> None:
        """Raise for a change that would never take effect."""
        check(change.from_epoch <= self.epochs, "changes", f"in {self.epochs} epochs", str(change))
        if "temperature.scale" in change.values:
            policy, rule = self.temperature.policy, "of a `temperature.policy` fixed or cosine"
            check(policy in ("fixed", "cosine"), "temperature.scale in changes", rule, policy)
        if "loss.hardness" in change.values:
            kind, rule = self.loss.hard_negatives, "of `loss.hard_negatives` reweight"
            check(kind == "reweight", "loss.hardness in changes", rule, kind)
        _replace(dataclasses.replace(self, changes=""), "", change.values)


def read_fields(words: Sequence[str], flag: str = "--set") -> dict[str, str]:
    """`["optim.lr=1e-4", ...]`, as `--set` takes them, by field.

    >>> read_fields(["optim.lr=1e-4", "batch_size=64"])
    {'optim.lr': '1e-4', 'batch_size': '64'}
    """
    fields: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"`{flag}` takes `field=value`, got {word!r}.")
        if name in fields:
            raise ConfigError(f"`{flag}` takes `{name}` once, got {fields[name]!r} and {value!r}.")
        fields[name] = value
    return fields


def flatten(config: Any, prefix: str = "") -> dict[str, Value]:
    """The dotted fields of a config, e.g. `{"optim.lr": 1e-4, ...}`."""
    flat: dict[str, Value] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[f"{prefix}{item.name}"] = value
    return flat


def replace(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """`config` with dotted `values` in place; an unknown name or a wrong type is an error.

    >>> config = TrainConfig("projection", adapter=None)
    >>> replace(config, {"optim.lr": "1e-4"}).optim.lr
    0.0001
    """
    known = flatten(config)
    for name in values:
        if name not in known or name == "name":
            raise ConfigError(unknown("field", name, set(known) - {"name"}))
    return typing.cast(TrainConfig, _replace(config, "", values))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a config's fields."""
    return typing.get_type_hints(kind)


def hint_of(config: Any, name: str) -> Any:
    """The type of the field with the dotted `name`."""
    *parts, last = name.split(".")
    return _hints(functools.reduce(getattr, parts, config).__class__)[last]


def _replace(config: Any, prefix: str, values: Mapping[str, Any]) -> Any:
    hints = _hints(config.__class__)
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        name = prefix + item.name
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            changed[item.name] = _replace(value, name + ".", values)
        elif name in values:
            changed[item.name] = convert(name, values[name], hints[item.name])
    return dataclasses.replace(config, **changed)


def convert(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type; text from a command line is read as that type."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{name}: " + unknown("choice", str(value), map(str, options)))
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "none":
            return None
        return convert(name, value, next(o for o in options if o is not type(None)))
    try:
        if hint is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if hint in (int, float):
            return _number(name, value, hint)
    except (TypeError, ValueError, KeyError):
        raise ConfigError(f"`{name}` must be of type {hint.__name__}, got {value!r}.") from None
    return str(value)


def _number(name: str, value: Any, hint: type) -> int | float:
    number = float(value)
    check(math.isfinite(number), name, "a finite number", value)
    if hint is float:
        return number
    check(abs(number) <= LARGEST, name, f"a whole number of at most {LARGEST:,}", value)
    if number != int(number):
        raise ValueError
    return int(number)


@functools.lru_cache(maxsize=256)
def in_epoch(config: TrainConfig, epoch: int) -> TrainConfig:
    """The values that hold in an epoch (from 1): those at the start, with the changes up to it.

    >>> config = replace(TrainConfig("x", adapter=None), {"changes": "3: optim.lr=0.5"})
    >>> in_epoch(config, 2).optim.lr == config.optim.lr, in_epoch(config, 3).optim.lr
    (True, 0.5)
    """
    values: dict[str, Any] = {}
    for change in read_changes(config.changes):
        if change.from_epoch <= epoch:
            values |= change.values
    return replace(config, {**values, "changes": ""}) if config.changes else config


def until(config: TrainConfig, epoch: int) -> TrainConfig:
    """`config` without the changes that come after an epoch: its first `epoch` epochs depend on no
    more."""
    changes = [one for one in read_changes(config.changes) if one.from_epoch <= epoch]
    return dataclasses.replace(config, changes=write_changes(changes))


def to_json(config: TrainConfig) -> dict[str, Value]:
    return flatten(config)
