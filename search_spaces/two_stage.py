"""`two_stage`: the paper has one setting for all data; what the stages share is worth a look."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from search_spaces.common import Spaces, choice, log_float

SPACES: Spaces = {
    "classification": {
        "batch_size": choice(16, 32, 64),
        "optim.lr": log_float(1e-5, 5e-3),
        "adapter.share": FloatDistribution(0.2, 1.0),
    }
}
