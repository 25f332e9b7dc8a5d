"""All search spaces by the name of their adapter."""

from __future__ import annotations

from search_spaces import lora, projection, soft_prompt, zero_shot
from search_spaces.common import Space

SPACES: dict[str, Space] = {
    "zero_shot": zero_shot.SPACE,
    "soft_prompt": soft_prompt.SPACE,
    "lora": lora.SPACE,
    "projection": projection.SPACE,
}
