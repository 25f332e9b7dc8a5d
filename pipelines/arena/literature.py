"""Published numbers, which may stand beside ours in a column of their own.

Flows in: the name of a data set. Flows out: its published accuracies, by adapter. The numbers are
of ViT-B/16 with 16 shots and three seeds, mostly with other splits of train and val, and with
settings that were chosen by hand.
"""

from __future__ import annotations

from typing import Any

BACKBONE = "ViT-B/16"
# Base, new, harmonic mean, in percent.
ORIGINAL = "as first published; read from PromptKD, images/exp_results.png"
ONE_ENVIRONMENT = "rerun in one environment; read from DePT, examples/base_to_new_performance.png"
BASE_TO_NEW: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {
    ORIGINAL: {
        "zero_shot": {
            "oxford_pets": (91.17, 97.26, 94.12),
            "oxford_flowers": (72.08, 77.80, 74.83),
            "eurosat": (56.48, 64.05, 60.03),
        },
        "coop": {
            "oxford_pets": (93.67, 95.29, 94.47),
            "oxford_flowers": (97.60, 59.67, 74.06),
            "eurosat": (92.19, 54.74, 68.69),
        },
        "cocoop": {
            "oxford_pets": (95.20, 97.69, 96.43),
            "oxford_flowers": (94.87, 71.75, 81.71),
            "eurosat": (87.49, 60.04, 71.21),
        },
        "maple": {
            "oxford_pets": (95.43, 97.76, 96.58),
            "oxford_flowers": (95.92, 72.46, 82.56),
            "eurosat": (94.07, 73.23, 82.35),
        },
        "promptsrc": {
            "oxford_pets": (95.33, 97.30, 96.30),
            "oxford_flowers": (98.07, 76.50, 85.95),
            "eurosat": (92.90, 73.90, 82.32),
        },
    },
    ONE_ENVIRONMENT: {
        "kgcoop": {
            "oxford_pets": (95.47, 97.80, 96.62),
            "oxford_flowers": (95.90, 74.83, 84.07),
            "eurosat": (85.77, 63.40, 72.91),
        },
        "clip_adapter": {
            "oxford_pets": (94.50, 97.03, 95.75),
            "oxford_flowers": (87.80, 73.33, 79.92),
            "eurosat": (75.13, 62.70, 68.36),
        },
    },
}
# All classes, in percent.
DIGITISED = "digitised from a curve, about 0.2 off; CLIP-LoRA, few_shot.png"
OF_TEST = f"{DIGITISED}; its code chooses the epoch on test"
ALL_CLASSES: dict[str, dict[str, float]] = {
    "lora": {"oxford_pets": 92.4, "oxford_flowers": 98.0, "eurosat": 92.1},
    "coop": {"oxford_pets": 92.0, "oxford_flowers": 96.8, "eurosat": 85.0},
    "tip_adapter": {"oxford_pets": 92.6, "oxford_flowers": 96.2, "eurosat": 85.9},
}


def _entry(
    adapter: str, dataset: str, protocol: str, value: dict[str, float], source: str
) -> dict[str, Any]:
    where = {"adapter": adapter, "dataset": dataset, "protocol": protocol, "shots": 16}
    shares = {name: round(percent / 100, 4) for name, percent in value.items()}
    return {**where, "backbone": BACKBONE, "value": shares, "source": source}


LITERATURE: list[dict[str, Any]] = [
    _entry(a, d, "base_to_new", dict(zip(("base", "new", "harmonic"), v, strict=True)), source)
    for source, adapters in BASE_TO_NEW.items()
    for a, sets in adapters.items()
    for d, v in sets.items()
] + [
    _entry(a, d, "all", {"all": v}, OF_TEST if a == "tip_adapter" else DIGITISED)
    for a, sets in ALL_CLASSES.items()
    for d, v in sets.items()
]
