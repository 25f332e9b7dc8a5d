"""`clip_adapter`: the share of the mixture, which the paper chose for each data set."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from search_spaces.common import Spaces, choice, log_float

SPACES: Spaces = {
    "classification": {
        "optim.lr": log_float(2e-4, 0.2),
        "adapter.reduction": choice(2, 4, 8),
        "adapter.ratio": FloatDistribution(0.1, 0.9),
    }
}
