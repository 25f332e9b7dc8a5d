"""`lora`, on the tower that the config names: the other towers need a feature store with pixels."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from search_spaces.common import CONTRASTIVE, Spaces, choice, log_float

SPACES: Spaces = {
    "retrieval": {
        **CONTRASTIVE,
        "optim.lr": log_float(1e-5, 1e-2),
        "adapter.rank": choice(2, 4, 8, 16),
        "adapter.alpha": choice(4.0, 8.0, 16.0, 32.0),
        "adapter.targets": choice("qv", "qkv", "qkvo", "mlp", "all"),
    },
    "classification": {
        "batch_size": choice(16, 32, 64),
        "optim.lr": log_float(1e-5, 5e-3),
        "adapter.tower": choice("text", "vision", "both"),
        "adapter.targets": choice("qv", "qkv", "qkvo", "mlp", "all"),
        "adapter.rank": choice(2, 4, 8, 16),
        "adapter.alpha": choice(1.0, 2.0, 4.0, 8.0),
        "adapter.dropout": FloatDistribution(0.0, 0.5),
    },
}
