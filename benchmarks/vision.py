"""LoRA in the upper blocks of the image tower: what lies below them is computed once, not a step.

The baseline is PEFT on transformers' own tower, which runs all blocks at each step; gradients
reach as far down as the lowest update, in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Case, Outputs, Row
from benchmarks.models import backbone, injected, normal, pictures
from benchmarks.steps import contrast, step
from trainables.models.image_tower import lower, upper

TOP, BATCH = 3, 16


def lora() -> Case:
    """Queries and values of the last three of twelve blocks, 16 images."""
    clip = backbone("B/32", text_layers=1)
    depth = clip.model.config.vision_config.num_hidden_layers
    blocks = "|".join(map(str, range(depth - TOP, depth)))
    peft, trained = injected(clip, rf"vision_model\.encoder\.layers\.({blocks})\..*(q|v)_proj")
    pixels, texts = pictures(BATCH), normal(BATCH, clip.embed_dim, seed=2)
    with torch.no_grad():
        hidden = lower(clip, pixels, depth - TOP)

    def run(images: Tensor) -> Outputs:
        loss, logits = contrast(images, texts)
        return step(loss, trained, logits=logits)

    def baseline() -> Outputs:
        values = clip.preprocess.normalise(pixels)
        return run(peft.get_image_features(pixel_values=values).pooler_output)

    return Case(baseline, lambda: run(upper(clip, hidden, depth - TOP)))


ROWS = (
    Row("vision/lora", "LoRA r = 8 on q, v of the top 3 blocks, 16 images, B/32", 3.5, lora),
)  # fmt: skip
