"""All adapters by name: the name is the file's, the search space's, and the command line's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainables.adapters.base import Adapter
from trainables.adapters.lora import Lora
from trainables.adapters.projection import Projection
from trainables.adapters.soft_prompt import SoftPrompt
from trainables.adapters.zero_shot import ZeroShot
from trainables.backbone import Backbone
from trainables.config import TrainConfig, replace
from trainables.errors import ConfigError, unknown

ADAPTERS: dict[str, type[Adapter[Any]]] = {
    "zero_shot": ZeroShot,
    "soft_prompt": SoftPrompt,
    "lora": Lora,
    "projection": Projection,
}


def make_config(name: str, values: Mapping[str, Any] | None = None) -> TrainConfig:
    """Adapter `name`'s published recipe with dotted `values` over it; unknown names are errors."""
    if name not in ADAPTERS:
        raise ConfigError(unknown("adapter", name, ADAPTERS))
    kind = ADAPTERS[name]
    return replace(TrainConfig(name, kind.Config()), {**kind.RECIPE, **(values or {})})


def build(config: TrainConfig, backbone: Backbone) -> Adapter[Any]:
    """The adapter as it starts: a function of `config` alone, whatever was drawn before."""
    # Weights are drawn on the CPU, so they are equal on every device; only its stream is set, and
    # given back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return ADAPTERS[config.name](config, backbone)
