"""A whole split through an adapter: what the metrics rank, on val each epoch, on test once."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from trainables.adapters.base import Adapter
from trainables.data import Predictions
from trainables.features import SplitFeatures


@torch.no_grad()
def predict(adapter: Adapter[Any], data: SplitFeatures, batch_size: int = 256) -> Predictions:
    """Normalised embeddings of all images (view 0) and all captions of `data`, in its order."""
    device = adapter.backbone.device
    training = adapter.training
    adapter.eval()
    images, texts = [], []
    for rows in torch.arange(len(data.groups)).split(batch_size):
        pixels = None
        if adapter.inputs == "pixels" and data.pixels is not None:
            pixels = data.pixels[rows, 0].to(device)
        embeds = adapter.embed_images(data.image_embeds[rows, 0].to(device), pixels)
        images.append(F.normalize(embeds.float(), dim=-1))
    # Captions of like length share a batch, so that little of it is padding.
    order = data.tokens.lengths.argsort(stable=True)
    for rows in order.split(batch_size):
        embeds = adapter.embed_text(data.tokens.select(rows).to(device))
        texts.append(F.normalize(embeds.float(), dim=-1))
    adapter.train(training)
    return Predictions(torch.cat(images), torch.cat(texts)[order.argsort().to(device)])
