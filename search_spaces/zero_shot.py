"""`zero_shot`: which words around a caption suit the data."""

from __future__ import annotations

from search_spaces.common import Spaces, choice

SPACES: Spaces = {
    "retrieval": {
        "adapter.template": choice(
            "{}",
            "a photo of {}",
            "a photo of {}.",
            "A photo depicts {}",  # CLIPScore's
            "{}|a photo of {}|a picture of {}",
        ),
    },
    "classification": {
        "adapter.template": choice(
            "{}",
            "a photo of a {}.",
            "itap of a {}.|a bad photo of the {}.|a origami {}.|a photo of the large {}.|"
            "a {} in a video game.|art of the {}.|a photo of the small {}.",
        ),
    },
}
