"""Pictures of any size, prepared by ONNX as Pillow prepares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipelines.export.pictures import LEVELS, put_in_front
from trainables.media.preprocess import CLIP_MEAN, CLIP_STD, Preprocess

SIZES = [(50, 37), (37, 50), (28, 28), (24, 100), (9, 5), (300, 200), (3, 61), (130, 2)]


def nothing(path: Path, size: int) -> None:
    """A tower that hands its squares back."""
    side = f"uint8[batch, 3, {size}, {size}]"
    onnx.save(
        onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["": 20]> tower ({side} pixel_values) => ({side} '
            "image_embeds) { image_embeds = Identity (pixel_values) }"
        ),
        path,
    )


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("kind", "resize"), [("crop", 24), ("crop", 28), ("squash", 24)])
def test_squares_are_those_of_pillow(kind: str, resize: int, mode: str, tmp_path: Path) -> None:
    """To a level or two where its float32 places of weights round otherwise than float64 ones."""
    how = Preprocess(kind, 24, resize, mode, CLIP_MEAN, CLIP_STD)  # type: ignore[arg-type]
    nothing(tmp_path / "model.onnx", 24)
    put_in_front(tmp_path / "model.onnx", how)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    equal = []
    for height, width in SIZES:
        pictures = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        (found,) = session.run(None, {"pictures": pictures})
        planes = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        wanted = torch.stack([how.apply(one) for one in planes]).int()
        off = (torch.from_numpy(found).int() - wanted).abs()
        assert off.max() <= LEVELS, (height, width)
        equal.append(float((off == 0).float().mean()))
    assert min(equal) > 0.95
