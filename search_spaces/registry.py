"""All search spaces by the name of their adapter."""

from __future__ import annotations

from search_spaces import (
    clip_adapter,
    cocoop,
    coop,
    gda,
    kernel_ridge,
    kgcoop,
    linear_probe,
    lora,
    lp_plus,
    maple,
    mip,
    nearest_caption,
    prefix_captioner,
    projection,
    prolip,
    promptsrc,
    singular_values,
    soft_prompt,
    ss_text,
    tip_adapter,
    two_stage,
    zero_shot,
)
from search_spaces.common import Idle, Spaces

SPACES: dict[str, Spaces] = {
    "zero_shot": zero_shot.SPACES,
    "soft_prompt": soft_prompt.SPACES,
    "lora": lora.SPACES,
    "projection": projection.SPACES,
    "coop": coop.SPACES,
    "cocoop": cocoop.SPACES,
    "kgcoop": kgcoop.SPACES,
    "maple": maple.SPACES,
    "promptsrc": promptsrc.SPACES,
    "mip": mip.SPACES,
    "clip_adapter": clip_adapter.SPACES,
    "tip_adapter": tip_adapter.SPACES,
    "gda": gda.SPACES,
    "kernel_ridge": kernel_ridge.SPACES,
    "linear_probe": linear_probe.SPACES,
    "lp_plus": lp_plus.SPACES,
    "ss_text": ss_text.SPACES,
    "prolip": prolip.SPACES,
    "two_stage": two_stage.SPACES,
    "singular_values": singular_values.SPACES,
    "nearest_caption": nearest_caption.SPACES,
    "prefix_captioner": prefix_captioner.SPACES,
}

IDLE: dict[str, Idle] = {"linear_probe": linear_probe.IDLE}
