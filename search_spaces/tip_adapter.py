"""`tip_adapter`: whether the keys are trained. alpha and beta are chosen within each trial."""

from __future__ import annotations

from search_spaces.common import Spaces, choice, log_float

SPACES: Spaces = {
    "classification": {
        "adapter.tune": choice(False, True),
        "adapter.grid": log_float(1.0, 50.0),
        "adapter.alpha": log_float(0.5, 10.0),
        "adapter.beta": log_float(0.5, 10.0),
        "optim.lr": log_float(1e-4, 1e-2),
    }
}
