"""Measure a CLIP as it is: its folder and a drawn demo folder in, recall at 1, 5 and 10 out.

`python -m pipelines.demo.zero_shot --model DIR [--domain base|shifted] [--images 1000]`
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.demo.drawings import draw
from pipelines.demo.scenes import DOMAINS, Domain

if TYPE_CHECKING:
    import torch

Recalls = dict[str, float]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def shrink(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """An image at the model's size, (side, side, 3)."""
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


def normalise(pixels: NDArray[np.uint8]) -> "torch.Tensor":
    """(B, H, W, 3) bytes to (B, 3, H, W) floats, as the preprocessor's config says."""
    import torch

    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def zero_shot(model_dir: Path, domain: Domain, images: int = 1000, seed: int = 0) -> Recalls:
    """Recalls in percent on a fresh test split: every caption a query, every image the pool."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(model_dir).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    with tempfile.TemporaryDirectory() as scratch:
        entries = json.loads(draw(Path(scratch), domain, 0, 0, images, seed).read_text())["images"]
        side = model.config.vision_config.image_size
        pixels = np.stack(
            [shrink(Image.open(Path(scratch, "images", e["filename"])), side) for e in entries]
        )
    sentences = [sentence["raw"] for entry in entries for sentence in entry["sentences"]]
    owners = [row for row, entry in enumerate(entries) for _ in entry["sentences"]]
    return recalls(_embed_texts(model, tokenizer, sentences), _embed_images(model, pixels), owners)


def _embed_images(model: Any, pixels: NDArray[np.uint8], batch: int = 250) -> "torch.Tensor":
    import torch

    with torch.inference_mode():
        chunks = [
            model.get_image_features(pixel_values=normalise(pixels[i : i + batch])).pooler_output
            for i in range(0, len(pixels), batch)
        ]
    return torch.nn.functional.normalize(torch.cat(chunks), dim=-1)  # (N, D)


def _embed_texts(
    model: Any, tokenizer: Any, sentences: list[str], batch: int = 250
) -> "torch.Tensor":
    import torch

    with torch.inference_mode():
        chunks = []
        for i in range(0, len(sentences), batch):
            rows = tokenizer(
                sentences[i : i + batch], padding=True, truncation=True, return_tensors="pt"
            )
            chunks.append(model.get_text_features(**rows).pooler_output)
    return torch.nn.functional.normalize(torch.cat(chunks), dim=-1)  # (N * 5, D)


def recalls(texts: "torch.Tensor", images: "torch.Tensor", owners: list[int]) -> Recalls:
    """Text-to-image and image-to-text R@K in percent; `owners` names each text's image."""
    import torch

    scores = texts @ images.T  # (T, I)
    owner = torch.tensor(owners)
    own = scores.gather(1, owner[:, None])
    text_ranks = (scores > own).sum(1)  # (T,)
    best_own = torch.full((images.shape[0],), -2.0).scatter_reduce(0, owner, own[:, 0], "amax")
    image_ranks = (scores > best_own).sum(0)  # (I,)
    found = {"t2i": text_ranks, "i2t": image_ranks}
    return {
        f"{way}_r{k}": round(100 * float((ranks < k).float().mean()), 2)
        for way, ranks in found.items()
        for k in (1, 5, 10)
    }


def main() -> None:
    """Print the recalls of a model as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--domain", choices=DOMAINS, default="shifted")
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    print(json.dumps({"domain": args.domain, **zero_shot(args.model, args.domain, args.images)}))


if __name__ == "__main__":
    main()
