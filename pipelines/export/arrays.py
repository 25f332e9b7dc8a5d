"""Class weights for cached embeddings: a matrix and a bias, as safetensors or as numpy's files.

Flows in: an adapter whose scores are linear in an image's embedding of unit length. Flows out: W
(C, e) and b (C,), with scores = f W^T + b for f (n, e), the CLIP's own embeddings of unit length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pipelines.export.refusals import instead
from pipelines.export.sample import EXACT, Answers, Sample
from trainables.adapters.base import Adapter
from trainables.errors import ConfigError
from trainables.files import write_json
from trainables.training.exported import scores_of
from trainables.training.predict import in_use


def write(adapter: Adapter[Any], folder: Path, sample: Sample, kind: str) -> list[Path]:
    name = adapter.train_config.name
    if adapter.classes is None:
        raise ConfigError(
            f"`{name}` was trained on captions: class weights are of classes. {instead(adapter)}"
        )
    if adapter.image_block is not None:
        raise ConfigError(
            f"`{name}` changes the image tower: cached embeddings are of the CLIP as it was. "
            + instead(adapter)
        )
    with in_use(adapter):
        scores = scores_of(adapter)
        axes = torch.eye(adapter.backbone.embed_dim, device=adapter.backbone.device)
        ahead, behind = scores(axes), scores(-axes)  # (e, C)
        weight, bias = ((ahead - behind) / 2).T, ((ahead + behind) / 2).mean(0)
        other = F.normalize(sample.image_embeds.to(axes), dim=-1)
        off = (scores(other) - (other @ weight.T + bias)).abs().max() / adapter.tau
    if off > EXACT:
        raise ConfigError(
            f"`{name}` is not linear in an image's embedding (off by {off:.2g}): no class weights "
            f"say what it does. {instead(adapter)}"
        )
    arrays = {"weight": weight.float().cpu().contiguous(), "bias": bias.float().cpu().contiguous()}
    write_json(folder / "classes.json", adapter.classes.to_json())
    if kind == "safetensors":
        save_file(arrays, folder / "class_weights.safetensors")
        return [folder / "class_weights.safetensors", folder / "classes.json"]
    for key, one in arrays.items():
        np.save(folder / f"{key}.npy", one.numpy(), allow_pickle=False)
    return [folder / "weight.npy", folder / "bias.npy", folder / "classes.json"]


def answer(folder: Path, sample: Sample, about: dict[str, Any]) -> Answers:
    del about
    if (folder / "weight.npy").is_file():
        files = (folder / f"{key}.npy" for key in ("weight", "bias"))
        weight, bias = (torch.from_numpy(np.array(open_memmap(one, mode="r"))) for one in files)
    else:
        found = load_file(folder / "class_weights.safetensors")
        weight, bias = found["weight"], found["bias"]
    images = F.normalize(sample.image_embeds.float(), dim=-1)
    return {"scores": images @ weight.T + bias}
