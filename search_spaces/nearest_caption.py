"""`nearest_caption`: the baseline has nothing to choose but how often it is measured: once."""

from __future__ import annotations

from search_spaces.common import Spaces, choice

SPACES: Spaces = {"captioning": {"patience": choice(0)}}
