"""`cocoop`: its context is short, as every image has its own."""

from __future__ import annotations

from optuna.distributions import IntDistribution

from search_spaces.common import PROMPT, Spaces, choice

SPACES: Spaces = {
    "classification": {
        **PROMPT,
        "batch_size": choice(1, 4, 16),
        "adapter.n_ctx": IntDistribution(1, 8),
        "adapter.init": choice("random", "a photo of a"),
    }
}
