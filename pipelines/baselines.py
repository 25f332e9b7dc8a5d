"""How what every result is compared with is called in a sentence."""

from __future__ import annotations

WORDS = {"zero_shot": "zero-shot", "nearest_caption": "the nearest caption"}
