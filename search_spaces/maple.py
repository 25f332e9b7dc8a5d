"""`maple`: how deep its vectors reach, and how fast they and their maps learn."""

from __future__ import annotations

from optuna.distributions import IntDistribution

from search_spaces.common import PROMPT, Spaces, choice

SPACES: Spaces = {
    "classification": {
        **PROMPT,
        "batch_size": choice(4, 16, 32),
        "adapter.n_ctx": IntDistribution(1, 4),
        "adapter.depth": IntDistribution(1, 12),
    }
}
