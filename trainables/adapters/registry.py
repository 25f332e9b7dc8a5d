"""All adapters by name: the name is the file's, the search space's, and the command line's.

Flows in: a name, dotted values, a backbone. Flows out: a configuration, or the built adapter.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainables.adapters.base import Adapter, Needs
from trainables.adapters.clip_adapter import ClipAdapter
from trainables.adapters.cocoop import CoCoop
from trainables.adapters.coop import Coop
from trainables.adapters.gda import Gda
from trainables.adapters.kernel_ridge import KernelRidge
from trainables.adapters.kgcoop import KgCoop
from trainables.adapters.linear_probe import LinearProbe
from trainables.adapters.lora import Lora
from trainables.adapters.lp_plus import LpPlus
from trainables.adapters.maple import Maple
from trainables.adapters.mip import Mip
from trainables.adapters.nearest_caption import NearestCaption
from trainables.adapters.prefix_captioner import PrefixCaptioner
from trainables.adapters.projection import Projection
from trainables.adapters.prolip import Prolip
from trainables.adapters.promptsrc import PromptSrc
from trainables.adapters.singular_values import SingularValues
from trainables.adapters.soft_prompt import SoftPrompt
from trainables.adapters.ss_text import SsText
from trainables.adapters.tip_adapter import TipAdapter
from trainables.adapters.two_stage import TwoStage
from trainables.adapters.zero_shot import ZeroShot
from trainables.config import Task, TrainConfig, replace
from trainables.errors import ConfigError, unknown
from trainables.features.classes import Classes
from trainables.features.manifest import embedded, towers_of
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone

ADAPTERS: dict[str, type[Adapter[Any]]] = {
    "zero_shot": ZeroShot,
    "soft_prompt": SoftPrompt,
    "lora": Lora,
    "projection": Projection,
    "coop": Coop,
    "cocoop": CoCoop,
    "kgcoop": KgCoop,
    "maple": Maple,
    "promptsrc": PromptSrc,
    "clip_adapter": ClipAdapter,
    "tip_adapter": TipAdapter,
    "mip": Mip,
    "gda": Gda,
    "kernel_ridge": KernelRidge,
    "linear_probe": LinearProbe,
    "lp_plus": LpPlus,
    "ss_text": SsText,
    "prolip": Prolip,
    "two_stage": TwoStage,
    "singular_values": SingularValues,
    "nearest_caption": NearestCaption,
    "prefix_captioner": PrefixCaptioner,
}
# What every result is compared with: it needs no training.
BASELINES: dict[Task, str] = {
    "retrieval": "zero_shot",
    "classification": "zero_shot",
    "captioning": "nearest_caption",
}


def make_config(name: str, values: Mapping[str, Any] | None = None) -> TrainConfig:
    """Adapter `name`'s published recipe with dotted `values` over it; unknown names are errors.

    `values["task"]` chooses the recipe; without it, the adapter's first recipe is taken.

    >>> config = make_config("coop", {"adapter.n_ctx": 4, "optim.lr": "1e-3"})
    >>> config.adapter.n_ctx, config.optim.lr, config.epochs
    (4, 0.001, 200)
    >>> make_config("coop", {"adapter.n_ctx": 0})
    Traceback (most recent call last):
    trainables.errors.ConfigError: `adapter.n_ctx` must be at least 1, got 0.
    """
    if name not in ADAPTERS:
        raise ConfigError(unknown("adapter", name, ADAPTERS))
    kind, values = ADAPTERS[name], dict(values or {})
    task = values.setdefault("task", next(iter(kind.RECIPES)))
    if task not in kind.RECIPES:
        raise ConfigError(f"`{name}` is for {' and '.join(kind.RECIPES)}, not for {task}.")
    return replace(TrainConfig(name, kind.Config()), {**kind.RECIPES[task], **values})


def adapters_for(task: Task) -> list[str]:
    """The adapters that have a recipe for `task`.

    >>> adapters_for("captioning")
    ['nearest_caption', 'prefix_captioner']
    """
    return [name for name, kind in ADAPTERS.items() if task in kind.RECIPES]


def task_of(names: Sequence[str], draw: bool = False) -> Task:
    """The task that adapters `names` are trained for: classification with a draw, else the first
    task that they share."""
    if draw:
        return "classification"
    for task in ("retrieval", "captioning"):
        if all(name in adapters_for(task) for name in names):
            return task
    named = [f"`{name}` is for {' and '.join(ADAPTERS[name].RECIPES)}" for name in names]
    raise ConfigError(f"adapters searched together must share a task: {', '.join(named)}.")


def has_all(have: Needs, config: TrainConfig) -> bool:
    """Whether features made with the part `have` of CLIP are enough for an adapter."""
    order: tuple[Needs, ...] = typing.get_args(Needs)
    return order.index(ADAPTERS[config.name].needs(config)) <= order.index(have)


def check_towers(folder: Path, configs: Iterable[TrainConfig]) -> None:
    """Raise `ConfigError` where an adapter runs through a tower that the store at `folder` cannot
    give it."""
    have = towers_of(folder)
    for config in configs:
        if has_all(have, config):
            continue
        needs = ADAPTERS[config.name].needs(config)
        every = [make_config(name, {"task": config.task}) for name in adapters_for(config.task)]
        work = ", ".join(f"`{one.name}`" for one in every if has_all(have, one))
        if embedded(folder):
            only = (
                f"finished embeddings{' and the text tower' if have != 'embeddings' else ''} alone"
            )
            hint = ", or encode them with `--backbone`, whose text tower it is"
            hint = hint if (have, needs) == ("embeddings", "the text tower") else ""
        else:
            only = "no pixels, which the image tower reads"
            hint = ", or encode the shards with `cliptune encode --pixels`"
        raise ConfigError(
            f"`{config.name}` needs {needs}, and `{folder}` has {only}: choose of {work}{hint}."
        )


def build(
    config: TrainConfig, backbone: Backbone, train: SplitFeatures | None = None
) -> Adapter[Any]:
    """The adapter before its first step, prepared on `train` where it is to be trained: a function
    of `config` and `train` alone, whatever random numbers were drawn before.

    >>> adapter = build(make_config("projection"), backbone, pairs)
    >>> sum(p.numel() for p in adapter.parameters() if p.requires_grad)  # two matrices (e, e)
    512
    """
    # Weights are drawn on the CPU, so they are equal on every device; only its stream is set, and
    # given back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        adapter = ADAPTERS[config.name](config, backbone)
        if train is not None:
            adapter.classes = train.classes
            adapter.prepare(train)
        return adapter


def check_room(
    configs: Iterable[TrainConfig], every: Iterable[Classes], backbone: Backbone
) -> None:
    """Raise `ConfigError` where a class name does not fit beside the tokens that an adapter adds to
    it."""
    adapters = [build(config, backbone) for config in configs]
    for classes in every:
        for adapter in adapters:
            classes.tokens(backbone, adapter.class_words, adapter.added_tokens)
