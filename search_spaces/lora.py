"""`lora`, on the tower that the config names: the other towers need a feature store with pixels."""

from __future__ import annotations

from search_spaces.common import CONTRASTIVE, Space, choice, log_float

SPACE: Space = {
    **CONTRASTIVE,
    "optim.lr": log_float(1e-5, 1e-2),
    "adapter.rank": choice(2, 4, 8, 16),
    "adapter.alpha": choice(4.0, 8.0, 16.0, 32.0),
    "adapter.targets": choice("qv", "qkv", "qkvo", "mlp", "all"),
}
