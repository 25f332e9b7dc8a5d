"""`projection`: e x e matrices that overfit small data, so how they are held back matters."""

from __future__ import annotations

from search_spaces.common import CONTRASTIVE, LABEL_SMOOTHING, Spaces, choice, log_float

SPACES: Spaces = {
    "retrieval": {
        **CONTRASTIVE,
        **LABEL_SMOOTHING,
        "optim.lr": log_float(1e-5, 1e-2),
        "optim.weight_decay": log_float(1e-3, 1.0),
        "adapter.side": choice("both", "image", "text"),
    },
    "classification": {
        "batch_size": choice(16, 32, 64),
        **LABEL_SMOOTHING,
        "optim.lr": log_float(1e-5, 1e-2),
        "optim.weight_decay": log_float(1e-3, 1.0),
        "adapter.side": choice("both", "image", "text"),
    },
}
