"""An adapter's scores of its classes as a program of torch's, which runs without cliptune.

Flows in: a trained adapter that ends in finished embeddings. Flows out: `scores.pt2`, from image
embeddings as CLIP gives them, (B, e) float32 of any length, to logits (B, C), and `classes.json`
with the names of the C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.adapters.base import Adapter, Classifier, product
from trainables.files import write_json
from trainables.training.predict import in_use

SCORES = "scores.pt2"


def scores_of(adapter: Adapter[Any]) -> Scores:
    """The adapter's logits of its own classes. If it changes the image tower, they are of the
    embeddings of the changed tower."""
    assert adapter.classes is not None
    classes, backbone = adapter.classes, adapter.backbone
    frozen = classes.text_embeds(backbone, adapter.frozen_words) if adapter.frozen_text else None
    words = classes.tokens(backbone, adapter.class_words, adapter.added_tokens)
    adapter.eval()
    with in_use(adapter):  # as it is measured
        if adapter.image_block is None:
            classifier = adapter.classifier(words, frozen)
        else:  # the images come through what `Adapter.export` wrote
            classifier = cosine(adapter.class_texts(words, frozen))
    return Scores(classifier, adapter.tau)


def write_scores(adapter: Adapter[Any], folder: Path) -> list[Path]:
    """Write the program and the names."""
    assert adapter.classes is not None
    classes, backbone = adapter.classes, adapter.backbone
    images = torch.zeros(2, backbone.embed_dim, device=backbone.device)
    scores = scores_of(adapter)
    with torch.no_grad():
        program = torch.export.export(
            scores,
            (images,),
            dynamic_shapes={"image_embeds": {0: torch.export.Dim("images")}},
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / SCORES)
    made_with = {"name": backbone.name, "revision": backbone.revision}
    write_json(folder / "classes.json", classes.to_json() | {"backbone": made_with})
    return [folder / SCORES, folder / "classes.json"]


def cosine(texts: Tensor) -> Classifier:
    def similarity(image_embeds: Tensor, hidden: Tensor | None) -> Tensor:
        del hidden
        return product(F.normalize(image_embeds.float(), dim=-1), texts.T)

    return similarity


class Scores(nn.Module):
    """Image embeddings (B, e) to logits (B, C)."""

    def __init__(self, classifier: Classifier, tau: float) -> None:
        super().__init__()
        self.classifier, self.tau = classifier, tau

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.tau * self.classifier(image_embeds, None)


def loading(folder: Path) -> str:
    """The expression that loads the program."""
    return f'torch.export.load("{folder / SCORES}").module()'
