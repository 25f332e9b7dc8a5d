"""Whether what was handed over computes the same: run in its own runtime, beside the adapter.

Flows in: a folder that `export --to` wrote, and what the adapter answered. Flows out:
`parity.json`, with the greatest difference of each answer and the change of the metric, and
`parity.safetensors`, with which `export --check` repeats it on any machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipelines.export.pictures import LEVELS
from pipelines.export.sample import Answers, Sample, first_right
from trainables.errors import DataError
from trainables.files import read_hashed, sha256_bytes, sha256_file, write_bytes, write_hashed

FORMAT = "cliptune-parity-2"


def compare(
    about: dict[str, Any], sample: Sample, expected: Answers, found: Answers
) -> dict[str, Any]:
    """The greatest difference of each answer, scores in units of similarity and squares in levels
    of 255, and the metric before and after."""
    if sample.pixels is not None:
        expected = expected | {"squares": sample.pixels.float()}
    greatest = {
        name: float((one - expected[name]).abs().max()) / (about["tau"] if name == "scores" else 1)
        for name, one in found.items()
    }
    answers = {n: expected[n] for n in found}, found
    here, there = (first_right(one, sample.right) for one in answers)
    name = "accuracy" if "scores" in expected else "i2t_r1"
    ranked = {} if here is None else {"metric": name, "here": here, "there": there}
    return {"greatest": greatest, **ranked}


def allowed(about: dict[str, Any], name: str) -> float:
    """How far an answer may be off: probabilities as far as the scores allow."""
    if name == "squares":
        return LEVELS
    tolerance = float(about["tolerance"])
    return min(1.0, tolerance * about["sharpness"] / 2) if name == "probabilities" else tolerance


def write_parity(
    folder: Path, about: dict[str, Any], sample: Sample, expected: Answers
) -> list[Path]:
    tensors = {"image_embeds": sample.image_embeds.float(), "right": sample.right}
    if sample.pixels is not None:
        tensors["pixels"] = sample.pixels
    if about["takes"] == "pictures":
        tensors["pictures"] = torch.frombuffer(
            bytearray(b"".join(sample.pictures)), dtype=torch.uint8
        )
        tensors["picture_sizes"] = torch.tensor([len(one) for one in sample.pictures])
    tensors |= {f"expected.{name}": one for name, one in expected.items()}
    data = save({name: one.contiguous().cpu() for name, one in tensors.items()})
    write_bytes(folder / "parity.safetensors", data)
    whole = about | {"format": FORMAT, "texts": sample.texts, "tensors": sha256_bytes(data)}
    write_hashed(folder / "parity.json", whole)
    return [folder / "parity.json", folder / "parity.safetensors"]


def read_parity(folder: Path) -> tuple[dict[str, Any], Sample, Answers]:
    """What `write_parity` wrote, unchanged since."""
    about = read_hashed(folder / "parity.json", FORMAT, "Export again.", texts=list, tensors=str)
    path = folder / "parity.safetensors"
    if not path.is_file() or sha256_file(path) != about["tensors"]:
        raise DataError(f"`{path}` is missing or was altered. Export again.")
    tensors = load_file(path)
    expected = {
        name.removeprefix("expected."): one
        for name, one in tensors.items()
        if name.startswith("expected.")
    }
    pixels = tensors.get("pixels")
    pictures: list[bytes] = []
    if "pictures" in tensors:
        parts = tensors["pictures"].split(tensors["picture_sizes"].tolist())
        pictures = [one.numpy().tobytes() for one in parts]
    sample = Sample(tensors["image_embeds"], pixels, about["texts"], tensors["right"], pictures)
    return about, sample, expected


def verdict(about: dict[str, Any], found: dict[str, Any]) -> tuple[list[str], bool]:
    """In lines, and whether all is within the tolerance."""
    lines = [
        f"{name:<7} greatest difference {value:.2g}, tolerance {allowed(about, name):.2g}"
        for name, value in found["greatest"].items()
    ]
    if "metric" in found:
        lines.append(
            f"{found['metric']} on {about['images']} val images: {found['here']:.4f} here, "
            f"{found['there']:.4f} there"
        )
    near = all(value <= allowed(about, name) for name, value in found["greatest"].items())
    return lines, near  # no number is not near


def normalised(sample: Sample, about: dict[str, Any]) -> Tensor:
    """The pixels as a tower takes them: (n, 3, R, R)."""
    assert sample.pixels is not None
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (sample.pixels.float() / 255 - mean) / std
