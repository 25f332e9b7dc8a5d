"""A made-up arena: adapters of known skill answer the images of made-up data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def answers(accuracy: float, images: int, seed: int) -> str:
    """A string of 0 and 1. Images are as hard for one adapter as for another, so pairs pay."""
    hard = np.random.default_rng(images).random(images)
    noise = np.random.default_rng((seed, round(1e4 * accuracy))).random(images)
    return "".join(
        "01"[int(0.6 * h + 0.4 * n < accuracy)] for h, n in zip(hard, noise, strict=True)
    )


def share(text: str) -> float:
    return text.count("1") / len(text)


def cell(
    adapter: str, dataset: str = "pets", seed: int = 1, correct: Any = None, **more: Any
) -> dict[str, Any]:
    """A run that is done; `correct` is the answers by accuracy key, or those of `all`."""
    by_key = {"all": correct} if isinstance(correct, str) else dict(correct or {"all": "10"})
    accuracy: dict[str, float | None] = {key: share(text) for key, text in by_key.items()}
    if "base" in by_key:
        base, new = accuracy["base"] or 0.0, accuracy.get("new")
        accuracy |= {"new": new, "harmonic": None}
        if new is not None:
            accuracy["harmonic"] = 2 * base * new / (base + new)
    return {
        "dataset": dataset,
        "protocol": "base_to_new" if "base" in by_key else "all",
        "target": None,
        "shots": 16,
        "seed": seed,
        "adapter": adapter,
        "state": "done",
        "reason": None,
        "accuracy": accuracy,
        "per_class": {key: {"cat": share(text[::2])} for key, text in by_key.items()},
        "correct": by_key,
        "val": 0.8,
        "trials": 4,
        "seconds": 12.5,
        "trainable_parameters": 8192,
    } | more


def failed(adapter: str, reason: str, dataset: str = "pets", seed: int = 1, **more: Any) -> Any:
    blank = {"accuracy": None, "per_class": None, "correct": None, "seconds": None}
    state = {"state": "failed", "reason": reason}
    return cell(adapter, dataset, seed) | blank | {"trainable_parameters": None} | state | more


def arena(cells: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "format": "cliptune-arena-1",
        "created": "2026-01-02T03:04:05+00:00",
        "metric": "val/accuracy",
        "backbone": {"name": "tiny/clip", "revision": "r1", "fingerprint": "f1ngerprint"},
        "budget": {"trials": 4, "seconds": None},
        "adapters": list(dict.fromkeys(c["adapter"] for c in cells)),
        "cells": list(cells),
        "literature": [],
    } | more


SKILLS = {  # accuracy, seconds, parameters
    "zero_shot": (0.42, 0.0, 0),
    "coop": (0.55, 61.0, 8_192),
    "cocoop": (0.56, 240.0, 35_360),
    "tip_adapter": (0.60, 14.0, 16_384),
    "lora": (0.66, 95.0, 184_320),
    "linear_probe": (0.61, 5.5, 51_300),
    "soft_prompt": (0.57, 70.0, 2_048),
}
DATA = {"eurosat": -0.1, "oxford_pets": 0.2, "dtd": -0.05, "food101": 0.15, "stanford_cars": 0.0}


def large() -> dict[str, Any]:
    """Seven adapters on five data sets, three seeds, two shots, and three protocols."""
    cells = []
    for n, (dataset, ease) in enumerate(DATA.items()):
        for adapter, (skill, seconds, size) in SKILLS.items():
            costs = {"seconds": seconds, "trainable_parameters": size}
            for seed in (1, 2, 3):
                luck = 0.02 * np.random.default_rng((seed, n, len(adapter))).normal()
                for shots in (4, 16):
                    level = skill + ease + luck + (0.04 if shots == 16 and seconds else 0.0)
                    text = answers(min(level, 0.98), 500 + 100 * n, seed)
                    cells.append(cell(adapter, dataset, seed, text, shots=shots, **costs))
                base = {"base": answers(skill + ease + luck + 0.08, 300 + n, seed)}
                if adapter != "linear_probe":
                    base["new"] = answers(0.5 + ease - luck, 280 + n, seed)
                cells.append(cell(adapter, dataset, seed, base, **costs))
    for target in ("dtd", "food101"):
        for adapter in ("zero_shot", "coop", "lora"):
            moved = {"protocol": "transfer", "target": target}
            text = answers(SKILLS[adapter][0], 400, 1)
            cells.append(cell(adapter, "imagenet", 1, text, **moved))
    reason = "Diverged: the loss was <inf> at step 40."
    first = next(i for i, c in enumerate(cells) if (c["adapter"], c["seed"]) == ("lora", 3))
    cells[first] = failed("lora", reason, cells[first]["dataset"], 3, shots=cells[first]["shots"])
    published = {"adapter": "coop", "protocol": "base_to_new", "shots": 16, "backbone": "ViT-B/16"}
    value = {"base": 0.9367, "new": 0.9529, "harmonic": 0.9447}
    source = {"source": "PromptKD images/exp_results.png", "value": value}
    literature = [published | source | {"dataset": name} for name in ("oxford_pets", "sun397")]
    return arena(cells, literature=literature)
