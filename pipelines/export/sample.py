"""What an export is checked on: some val images and texts, and what the adapter makes of them.

Flows in: a run and its adapter. Flows out: a `Sample`, and the answers (`images` (n, e) and `texts`
(m, e) of unit length, `scores` (n, C)) that whatever is handed over must give too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.runs.contestants import Contest, Contestant
from trainables.adapters.base import Adapter
from trainables.data.shards import CAPTION_COLUMNS, ShardSet, captions_of
from trainables.data.store import read_manifest
from trainables.errors import DataError
from trainables.features.features import backbone_of, open_features
from trainables.features.few_shot import measured
from trainables.media.images import decode
from trainables.models.cleaning import clean
from trainables.models.image_tower import frozen_embeds, lower
from trainables.models.text_plan import fit
from trainables.training.exported import scores_of
from trainables.training.predict import in_use

SIZE = 64
EXACT = 1e-4  # as far as fp32 may be off
Answers = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """n images of val and m texts; `right` (n,) says which text, or class, is an image's own."""

    image_embeds: Tensor  # (n, e) of the frozen tower, not normalised
    pixels: Tensor | None  # (n, 3, R, R) uint8; finished embeddings have none
    texts: list[str]
    right: Tensor
    pictures: list[bytes]  # the images' files, where there are pixels


def adapter_of(contest: Contest, best: Contestant) -> Adapter[Any]:
    """The adapter and its frozen model in fp32, whatever the run and its store were computed in:
    what is handed over has fp32 weights, and runs where nobody knows of autocast."""
    backbone = replace(backbone_of(contest.features), precision="fp32")
    return best.load(backbone, precision="fp32")


def sample_of(contest: Contest, adapter: Adapter[Any]) -> Sample:
    """Of the run's val, which must still be there. What the frozen tower makes of its images is
    computed anew where there are pixels: a store may hold it in bf16, or of more than one frame."""
    backbone, data = adapter.backbone, open_features(contest.features, "val")
    if contest.draw is not None:
        data = measured(data, contest.draw, ())
    shards = ShardSet.open(read_manifest(contest.features)["shards"])
    ids = data.ids[:SIZE]
    wanted, rows = set(ids), {}
    for row in shards.rows("val", [*CAPTION_COLUMNS, *["image"] * (not shards.embedded)]):
        if row["id"] in wanted:
            rows[row["id"]] = row
        if len(rows) == len(wanted):
            break
    if missing := [id_ for id_ in ids if id_ not in rows]:
        raise DataError(f"`{shards.folder}`: val has no image `{missing[0]}` any more.")
    pixels, pictures = None, []
    if not shards.embedded:
        pictures = [rows[id_]["image"] for id_ in ids]
        pixels = torch.stack([backbone.preprocess.apply(decode(one)) for one in pictures])
    embeds = data.embeds(torch.arange(len(ids)))
    if pixels is not None:
        embeds = frozen_embeds(backbone, pixels)
    if adapter.classes is not None and data.labels is not None:
        template = adapter.class_words or adapter.classes.template
        names = list(islice(adapter.classes.names, SIZE))
        texts = [template.replace("{}", name) for name in names]
        right = data.labels[: len(ids)]
    else:
        texts, right = [captions_of(rows[id_])[0] for id_ in ids], torch.arange(len(ids))
    return Sample(embeds, pixels, _clean(adapter, texts), right, pictures)


def _clean(adapter: Adapter[Any], texts: Sequence[str]) -> list[str]:
    return [clean(text, adapter.backbone.cleaning) for text in texts]


def answers_of(adapter: Adapter[Any], sample: Sample) -> Answers:
    """What the adapter gives here."""
    backbone, block = adapter.backbone, adapter.image_block
    with in_use(adapter):
        embeds, hidden = sample.image_embeds.to(backbone.device), None
        if block is not None:
            assert sample.pixels is not None  # it was trained on such
            hidden = lower(backbone, sample.pixels, block)
        images = adapter.embed_images(embeds, hidden)
        found = {"images": F.normalize(images.float(), dim=-1)}
        if backbone.kind != "embeddings" and (adapter.prompt is None or adapter.prompt.shared):
            tokens = fit(backbone, backbone.tokenize(sample.texts)[0], adapter.added_tokens)[0]
            found["texts"] = F.normalize(adapter.embed_text(tokens).float(), dim=-1)
        if adapter.classes is not None:
            scores = scores_of(adapter)(images if block is not None else embeds)
            found["scores"] = scores
            if adapter.calibration is not None:
                likely = adapter.calibration.probabilities(scores / adapter.tau)
                found["probabilities"] = likely
    return {name: one.float().cpu() for name, one in found.items()}


def first_right(answers: Answers, right: Tensor) -> float | None:
    """The share of images whose own class, or text, is ranked first, where that can be said."""
    if "scores" in answers:
        scores = answers["scores"]
    elif {"images", "texts"} <= answers.keys():
        scores = answers["images"] @ answers["texts"].T
    else:
        return None
    return float((scores.argmax(1) == right).float().mean())
