"""`mip`: the readings of its two formulas, and the rate that fits their scale."""

from __future__ import annotations

from search_spaces.common import Spaces, choice, log_float

SPACES: Spaces = {
    "classification": {
        "optim.lr": log_float(2e-4, 2.0),
        "batch_size": choice(1, 4, 16),
        "adapter.n_ctx": choice(2, 4, 8),
        "adapter.terms": choice("svd", "rows"),
        "adapter.fill": choice("same", "dealt"),
        "adapter.length": choice("formula", "words"),
        "adapter.divisor": choice("size", "norm", "none"),
        "adapter.meta": choice(True, False),
    }
}
