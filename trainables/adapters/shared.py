"""What several adapters do alike, as functions: adapters never import or subclass each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from trainables.adapters.base import Adapter
from trainables.data import Batch, Predictions


def contrastive_loss(adapter: Adapter[Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective of the batch's images and captions, both as the adapter embeds them."""
    loss: tuple[Tensor, dict[str, Tensor]] = adapter.objective(
        adapter.embed_images(batch.image_embeds, batch.hidden),
        adapter.embed_text(batch.tokens, batch.text_embeds),
        batch.image_groups,
        batch.caption_groups,
        batch.progress,
    )
    return loss


def retrieval_predictions(adapter: Adapter[Any], batch: Batch) -> Predictions:
    """The batch's images and captions, as the adapter embeds them, L2-normalised."""
    images = adapter.embed_images(batch.image_embeds, batch.hidden)
    texts = adapter.embed_text(batch.tokens, batch.text_embeds)
    return Predictions(F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1))
