"""`kgcoop`: how hard the prompt is held decides between old and new classes."""

from __future__ import annotations

from optuna.distributions import IntDistribution

from search_spaces.common import PROMPT, Spaces, choice, log_float

SPACES: Spaces = {
    "classification": {
        **PROMPT,
        "batch_size": choice(32, 64, 128),
        "adapter.n_ctx": IntDistribution(1, 16),
        "adapter.weight": log_float(0.5, 50.0),
    }
}
