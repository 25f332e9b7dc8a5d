"""`projection`: e x e matrices that overfit small data, so how they are held back matters."""

from __future__ import annotations

from search_spaces.common import CONTRASTIVE, LABEL_SMOOTHING, Space, choice, log_float

SPACE: Space = {
    **CONTRASTIVE,
    **LABEL_SMOOTHING,
    "optim.lr": log_float(1e-5, 1e-2),
    "optim.weight_decay": log_float(1e-3, 1.0),
    "adapter.side": choice("both", "image", "text"),
}
