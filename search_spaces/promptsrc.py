"""`promptsrc`: how deep its vectors reach, how hard they are held, and which epochs count."""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

from search_spaces.common import PROMPT, Spaces, choice, log_float

SPACES: Spaces = {
    "classification": {
        **PROMPT,
        "batch_size": choice(4, 16, 32),
        "adapter.n_ctx": IntDistribution(1, 8),
        "adapter.depth": IntDistribution(1, 12),
        "adapter.text_weight": log_float(2.5, 50.0),
        "adapter.image_weight": log_float(1.0, 20.0),
        "adapter.mean": FloatDistribution(0.25, 1.0),
        "adapter.std": log_float(0.02, 0.5),
    }
}
