"""`coop`: how many vectors, where, and how fast. The optimizer is the method's own.

Contexts of each class's own are for `--set`: they cannot be asked about new classes.
"""

from __future__ import annotations

from search_spaces.common import PROMPT, Spaces, choice

SPACES: Spaces = {
    "classification": {
        **PROMPT,
        "adapter.n_ctx": choice(2, 4, 8, 16),
        "adapter.init": choice("random", "a photo of a"),
        "adapter.class_position": choice("end", "middle", "front"),
    }
}
