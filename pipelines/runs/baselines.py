"""The name of each baseline in a sentence, by the name of its adapter."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, str] = {"zero_shot": "zero-shot", "nearest_caption": "the nearest caption"}
