"""One trial of a search as it is written without an engine: the other side of `search.py`.

Flows in: a JSON job: the model's folder, JPEG files by split, a config, a number of epochs. Flows
out: a JSON list with the loss and the val metric of each epoch. Every epoch decodes every picture
with PIL, runs the image tower on it, and pads every caption to 77. Batches are drawn as the engine
draws them, so that both see the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from benchmarks.images import pil
from benchmarks.models import PREPROCESS
from benchmarks.text import padded
from trainables.data.batches import Tokens
from trainables.files import read_json, write_json
from trainables.losses.schedules import lr_factor
from trainables.training.sampler import generator

BATCH = 64  # of the val pictures and captions


class Trial:
    """A soft prompt on CLIP, fixed temperature, InfoNCE."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.config = job["config"]
        self.model = CLIPModel.from_pretrained(job["clip"]).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(job["clip"])
        self.scale = self.config["temperature.scale"]
        torch.manual_seed(self.config["seed"])
        width = self.model.config.text_config.hidden_size
        ctx = torch.randn(self.config["adapter.n_ctx"], width) * self.config["adapter.init_std"]
        if self.config["adapter.init"] != "random":
            words = self.tokenize([self.config["adapter.init"]]).ids[1:-1][: len(ctx)]
            ctx[: len(words)] = self.model.text_model.embeddings.token_embedding.weight[words]
        self.ctx = nn.Parameter(ctx)

    def tokenize(self, texts: list[str]) -> Tokens:
        rows = self.tokenizer(texts)["input_ids"]
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
        return Tokens(torch.tensor([number for row in rows for number in row]), offsets)

    def images(self, files: list[str]) -> Tensor:
        pixels = torch.stack([pil(Path(file).read_bytes()) for file in files])
        values = PREPROCESS.normalise(pixels)
        with torch.no_grad():
            embeds = self.model.get_image_features(pixel_values=values).pooler_output
        return F.normalize(embeds, dim=-1)

    def texts(self, files: list[str]) -> Tensor:
        tokens = self.tokenize([f"a photo of a {Path(file).parent.name}." for file in files])
        return F.normalize(padded(self.model, tokens, self.ctx), dim=-1)

    def train(self, files: list[str], optimizer: torch.optim.Optimizer, epoch: int) -> float:
        """The mean loss of an epoch."""
        config, size = self.config, min(self.config["batch_size"], len(files))
        order = torch.randperm(len(files), generator=generator(config["seed"], 0, epoch)).tolist()
        steps = max(1, len(files) // size)
        losses = []
        for number in range(steps):
            batch = [files[row] for row in order[number * size : (number + 1) * size]]
            factor = lr_factor(
                config["optim.schedule"],
                config["optim.warmup"],
                epoch * steps + number,
                config["epochs"] * steps,
            )
            for group in optimizer.param_groups:
                group["lr"] = config["optim.lr"] * factor
            logits = self.scale * self.images(batch) @ self.texts(batch).T
            target = torch.arange(len(batch))
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([self.ctx], config["optim.clip_norm"])
            optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    @torch.no_grad()
    def measure(self, files: list[str]) -> float:
        """Mean reciprocal rank of each caption's image."""
        parts = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
        images = torch.cat([self.images(part) for part in parts])
        texts = torch.cat([self.texts(part) for part in parts])
        scores = texts @ images.T  # (captions, images), one caption an image
        ranks = (scores > scores.diagonal()[:, None]).sum(1) + 1
        return float((1 / ranks).mean())


def main(path: Path) -> None:
    torch.set_num_threads(1)
    job = read_json(path)
    trial = Trial(job)
    decay = trial.config["optim.weight_decay"]
    optimizer = torch.optim.AdamW([trial.ctx], weight_decay=decay, fused=True)
    rows = []
    for epoch in range(job["epochs"]):
        loss = trial.train(job["train"], optimizer, epoch)
        rows.append({"loss": loss, "val": trial.measure(job["val"])})
    write_json(path.with_suffix(".rows.json"), rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
