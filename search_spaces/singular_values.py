"""`singular_values`: its rate, and whose values they are."""

from __future__ import annotations

from search_spaces.common import Spaces, choice, log_float

SPACES: Spaces = {
    "classification": {
        "batch_size": choice(16, 32, 64),
        "optim.lr": log_float(1e-5, 1e-2),
        "adapter.targets": choice("all", "attention", "mlp"),
    }
}
