"""ONNX's programs, run by onnxruntime alone, with `tokenizers` for texts.

Flows in: a folder of them, and a sample. Flows out: what they answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.export.parity import normalised
from pipelines.export.pictures import SQUARES, showing_squares
from pipelines.export.sample import Answers, Sample
from trainables.media.images import decode


def answer(folder: Path, sample: Sample, about: dict[str, Any]) -> Answers:
    from tokenizers import Tokenizer

    found: Answers = {}
    embeds = sample.image_embeds.float()
    if (folder / "visual").is_dir():
        seen = _run(folder / "visual", _given(sample, about))
        embeds = seen["image_embeds"]
        if not (folder / "scores").is_dir():
            found["images"] = embeds
        if SQUARES in seen:
            found["squares"] = seen[SQUARES]
    if (folder / "textual").is_dir():
        words = Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
        ids = torch.tensor([one.ids for one in words.encode_batch(sample.texts)])
        found["texts"] = _run(folder / "textual", ids.split(16))["text_embeds"]
    if (folder / "scores").is_dir():
        found |= _run(folder / "scores", embeds.split(16))
    return found


def _given(sample: Sample, about: dict[str, Any]) -> Iterable[Tensor]:
    """Batches of the image tower's inputs; pictures are of a size each."""
    if about["takes"] == "pictures":
        return (decode(one).permute(1, 2, 0)[None].contiguous() for one in sample.pictures)
    assert sample.pixels is not None
    whole = sample.pixels if about["takes"] == "squares" else normalised(sample, about)
    return whole.split(16)


def _run(folder: Path, batches: Iterable[Tensor]) -> Answers:
    """Its outputs by their names."""
    import onnxruntime

    path = folder / "model.onnx"
    cpu = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, providers=cpu)
    name = session.get_inputs()[0].name
    if name == "pictures":
        session = onnxruntime.InferenceSession(showing_squares(path), providers=cpu)
    names = [one.name for one in session.get_outputs()]
    parts = [session.run(names, {name: one.numpy()}) for one in batches]
    return {
        name: torch.cat([torch.from_numpy(one).float() for one in column])
        for name, column in zip(names, zip(*parts, strict=True), strict=True)
    }
