"""`soft_prompt`: few parameters of small size, so learning rates far above the paper's 1e-4 pay."""

from __future__ import annotations

from optuna.distributions import IntDistribution

from search_spaces.common import CONTRASTIVE, LABEL_SMOOTHING, Spaces, choice, log_float

SPACES: Spaces = {
    "retrieval": {
        **CONTRASTIVE,
        **LABEL_SMOOTHING,
        "optim.lr": log_float(3e-5, 3e-2),
        "adapter.n_ctx": IntDistribution(1, 16),
        "adapter.init": choice("random", "a photo of"),
    },
}
