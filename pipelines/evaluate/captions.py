"""The protocol of the test split for captioners, beside that for retrieval in `protocol.py`.

Flows in: a split's features with people's captions, and the captions of several models. Flows out:
caption metrics with the number of images in their name, their intervals, paired differences, and
the protocol in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.evaluate.protocol import Measured, differences, intervals
from pipelines.runs.baselines import WORDS
from trainables.adapters.base import Adapter
from trainables.adapters.registry import BASELINES
from trainables.features.lazy_parts import embed_each_once
from trainables.features.split import SplitFeatures
from trainables.metrics.captioning import (
    bleu_of,
    clip_score,
    diversity,
    ref_clip_score,
    score_captions,
    spice,
    why_no_spice,
)
from trainables.metrics.clip_score import PREFIX
from trainables.models.backbone import Backbone
from trainables.statistics.bootstrap import Bootstrap
from trainables.training.predict import speak

PART = 64  # images that a captioner speaks about at a time


class CaptionProtocol:
    """Measures captioners on the same images, a row each, on the same resamples of them."""

    def __init__(self, data: SplitFeatures, backbone: Backbone, resamples: int) -> None:
        self.data, self.backbone = data, backbone
        self.texts = data.texts()
        self.clusters = torch.arange(len(data.ids))
        self.bootstrap = Bootstrap(len(data.ids), resamples)
        self.sees = backbone.kind != "embeddings"  # else no text tower compares words and images
        self.references = self._embed(self.texts) if self.sees else None  # (M, e)
        self.no_spice = why_no_spice()

    def _embed(self, texts: list[str]) -> Tensor:
        tokens, _ = self.backbone.tokenize([PREFIX + text for text in texts])
        return embed_each_once(self.backbone, tokens)

    def named(self, metric: str) -> str:
        """`cider_d` with the number of images that it was measured on: their words decide its
        weights."""
        return f"{metric}@{len(self.data.ids)}"

    def image_of(self, metric: str) -> Tensor:
        del metric
        return self.clusters

    def of(self, adapter: Adapter[Any], batch_size: int) -> Measured:
        def shown(parts: Sequence[Tensor]) -> Iterable[Tensor]:
            bar: Iterable[Tensor] = tqdm(
                parts, adapter.train_config.name, unit="batch", leave=False
            )
            return bar

        return self.measure(speak(adapter, self.data, min(batch_size, PART), shown))

    def measure(self, said: list[str]) -> Measured:
        """The metrics of one caption an image."""
        scores = score_captions(said, self.data.references)
        values = dict(scores.values)
        if self.references is not None:
            embeds, images, rows = self._embed(said), self.data.image_embeds, self.data.caption_rows
            values["clip_score"] = clip_score(images.float(), embeds)
            values["ref_clip_score"] = ref_clip_score(images.float(), embeds, self.references, rows)
        if not self.no_spice:
            # Of captions that name nothing the parser knows, there is nothing to agree on.
            values["spice"] = spice(said, self.data.texts_of_images()).nan_to_num(0.0)
        replicates = {
            name: self.bootstrap.mean(value, self.clusters) for name, value in values.items()
        }
        sums = self.bootstrap.sums(scores.bleu, self.clusters)  # (R, 10)
        summary = {name: float(value.mean()) for name, value in values.items()}
        bleu = zip(bleu_of(scores.bleu.sum(0)), bleu_of(sums).T, strict=True)
        for order, (value, resampled) in enumerate(bleu, start=1):
            summary[f"bleu{order}"], replicates[f"bleu{order}"] = float(value), resampled
            values[f"bleu{order}"] = scores.bleu
        return Measured(values, summary, replicates, said=said)

    def about(self, model: Measured) -> dict[str, Any]:
        return {"diversity": diversity(model.said)}

    def _seen(self) -> str:
        if not self.sees:
            return "clip_score was not computed: finished embeddings come without a text tower."
        return (
            f"clip_score and ref_clip_score were computed with `{self.backbone.name}`: they are "
            "comparable to no other backbone's, and a captioner trained on it starts ahead. Those "
            "of a clip are of its frames' mean."
        )

    def text(self, metric: str) -> list[str]:
        """The protocol in sentences."""
        images, baseline = len(self.data.ids), WORDS[BASELINES["captioning"]]
        lines = [
            f"One caption for each of {images:,} images, the number after @, against all "
            f"{len(self.texts):,} captions that people wrote of them.",
            "Words are coco-caption's. bleu1 to bleu4 are of the corpus; cider_d is what papers "
            "call CIDEr, its weights are of these images; meteor_stem is METEOR without synonyms; "
            "sentence_bleu4 is a mean over captions, and not BLEU-4; repetition is the share of a "
            "caption's word pairs that it has said before.",
            self._seen(),
            intervals(
                self.bootstrap,
                "CIDEr's weights",
                "another training run may change more: a run of another seed can be measured "
                "`--beside` this one.",
            ),
            differences("the baseline"),
            f"All choices were made on val, by {metric}; nothing was chosen on test. What "
            f"{baseline} says is the first caption of the training image with the highest cosine "
            "similarity.",
        ]
        return [*lines, f"SPICE was not computed: {self.no_spice}"] if self.no_spice else lines
