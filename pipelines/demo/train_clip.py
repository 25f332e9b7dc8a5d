"""Train the tiny CLIP from scratch: nothing in but a seed, a Hugging Face model folder out.

`python -m pipelines.demo.train_clip --out DIR` draws the base domain, learns a BPE on its captions,
trains both towers with CLIP's symmetric contrastive loss, saves them, and measures zero-shot
retrieval on both domains. The model card is written last, so its existence means a whole folder.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pipelines.demo.card import Measured, model_card
from pipelines.demo.render import render
from pipelines.demo.scenes import DOMAINS, invent
from pipelines.demo.sentences import CAPTIONS, captions
from pipelines.demo.tokenizer import build_tokenizer
from pipelines.demo.zero_shot import MEAN, STD, normalise, shrink, zero_shot
from trainables.hardware import autocast

SIDE = 64
WIDTH = 128
PATCH = 8
THREADS = 2


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, besides the code."""

    steps: int = 1200
    images: int = 24_000
    batch: int = 256
    rate: float = 1.5e-3
    warmup: int = 100
    decay: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """The training set in memory: pixels (N, S, S, 3), token ids (N, 5, L), lengths (N, 5)."""

    pixels: NDArray[np.uint8]
    ids: Tensor
    lengths: Tensor


def prepare(recipe: Recipe) -> tuple[Examples, CLIPTokenizer]:
    """Draw the training split of the base domain, learn its BPE and encode its captions."""
    pixels = np.empty((recipe.images, SIDE, SIDE, 3), np.uint8)
    said: list[str] = []
    for i in range(recipe.images):
        scene = invent("base", "train", i, recipe.seed)
        pixels[i] = shrink(render(scene), SIDE)
        said += captions(scene)
    tokenizer = build_tokenizer(said[:20_000])
    rows = tokenizer(said, padding=True, truncation=True, return_tensors="pt")
    ids = rows["input_ids"].view(recipe.images, CAPTIONS, -1)
    lengths = rows["attention_mask"].sum(1).view(recipe.images, CAPTIONS)
    return Examples(pixels, ids, lengths), tokenizer


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP of about 1.6 M parameters, its special ids taken from the tokenizer."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    config = CLIPConfig(
        projection_dim=WIDTH,
        text_config={
            **tower,
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH},
    )
    return CLIPModel(config)


def train(recipe: Recipe, examples: Examples, model: CLIPModel) -> None:
    """The loop: images in random order, one of the five captions each."""
    optimiser = _optimiser(recipe, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _pace(step, recipe))
    rng = np.random.default_rng(recipe.seed)
    model.train()
    started = time.monotonic()
    for step in range(1, recipe.steps + 1):
        rows = rng.choice(recipe.images, recipe.batch, replace=False)
        picks = rng.integers(CAPTIONS, size=recipe.batch)
        loss, found = _contrast(examples, model, rows, picks)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 25 == 0 or step == recipe.steps:
            seconds = (time.monotonic() - started) / step
            print(
                f"step {step}/{recipe.steps}  loss {loss.item():.3f}  in-batch R@1 {found:.0%}  "
                f"{recipe.batch / seconds:.0f} pairs/s  "
                f"ETA {seconds * (recipe.steps - step) / 60:.1f} min",
                flush=True,
            )


def _optimiser(recipe: Recipe, model: CLIPModel) -> torch.optim.Optimizer:
    """AdamW that decays matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)


def _pace(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to nothing."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup))


def _contrast(
    examples: Examples, model: CLIPModel, rows: NDArray[np.int64], picks: NDArray[np.int64]
) -> tuple[Tensor, float]:
    """CLIP's loss on a batch, and the share of its texts that find their image in it."""
    ids = examples.ids[rows, picks][:, : int(examples.lengths[rows, picks].max())]  # (B, T)
    with autocast("auto", "cpu"):  # bf16 where it pays
        seen = model.get_image_features(pixel_values=normalise(examples.pixels[rows]))
        read = model.get_text_features(input_ids=ids)  # causal: padding cannot reach the end mark
    images = normalize(seen.pooler_output.float(), dim=-1)  # (B, D)
    texts = normalize(read.pooler_output.float(), dim=-1)  # (B, D)
    logits = model.logit_scale.exp() * texts @ images.T  # (B, B)
    target = torch.arange(len(rows))
    loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    return loss, float((logits.argmax(1) == target).float().mean())


def save(out: Path, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """The weights, the tokenizer and the preprocessor's config, as transformers loads them."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def main() -> None:
    """Train, save, measure, and write the card from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--images", type=int, default=Recipe.images)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args()
    recipe = Recipe(steps=args.steps, images=args.images, seed=args.seed)
    torch.set_num_threads(THREADS)
    torch.manual_seed(recipe.seed)
    print(f"drawing {recipe.images} images", flush=True)
    examples, tokenizer = prepare(recipe)
    model = build_model(tokenizer)
    started = time.monotonic()
    train(recipe, examples, model)
    minutes = (time.monotonic() - started) / 60
    save(args.out, model, tokenizer)
    recalls = {domain: zero_shot(args.out, domain) for domain in DOMAINS}
    measured = Measured(recipe.steps, recipe.images, recipe.batch, recipe.seed, minutes, recalls)
    (args.out / "README.md").write_text(model_card(measured))
    print(json.dumps(recalls, indent=2), flush=True)


if __name__ == "__main__":
    main()
