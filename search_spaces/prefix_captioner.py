"""`prefix_captioner`: what is trained of what speaks, how long its prefix is, how words are chosen.

A small language model wants rates far above the 2e-5 that suits GPT-2.
"""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from search_spaces.common import Spaces, choice, log_float

SPACES: Spaces = {
    "captioning": {
        "optim.lr": log_float(1e-5, 5e-3),
        "adapter.mapper": choice("mlp", "transformer"),
        "adapter.prefix_length": choice(4, 10, 20, 40),
        "adapter.clip_length": choice(10, 20, 40),
        "adapter.layers": choice(2, 4, 8),
        "adapter.lm_mode": choice("frozen", "lora", "full"),
        "adapter.normalize": choice(True, False),
        "adapter.decoding": choice("greedy", "beam"),
        "adapter.length_penalty": FloatDistribution(0.6, 1.4),
        "adapter.no_repeat_ngram": choice(0, 3),
    }
}
