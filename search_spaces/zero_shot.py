"""`zero_shot`: which words around a caption suit the data."""

from __future__ import annotations

from search_spaces.common import Space, choice

SPACE: Space = {
    "adapter.template": choice(
        "{}",
        "a photo of {}",
        "a photo of {}.",
        "A photo depicts {}",  # CLIPScore's
        "{}|a photo of {}|a picture of {}",
    ),
}
