"""`linear_probe`: few images and many weights, so where it starts and what holds it matter."""

from __future__ import annotations

from search_spaces.common import Idle, Spaces, choice, log_float

SPACES: Spaces = {
    "classification": {
        "batch_size": choice(16, 32, 64),
        "optim.lr": log_float(1e-4, 1e-1),
        "optim.weight_decay": log_float(1e-3, 1.0),
        "adapter.init": choice("zero", "text"),
        "adapter.solver": choice("optim", "lbfgs"),
    }
}
IDLE: Idle = {"adapter.solver": {"lbfgs": ("batch_size", "optim.lr", "optim.weight_decay")}}
