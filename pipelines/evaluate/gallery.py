"""The gallery: what adapting changed, as captions with their five nearest images before and after.

Flows in: two models on the split, and the split's rows. Flows out: JSON-ready queries with small
JPEG pictures. Which captions are shown is a rule, not a taste: some improved, some did not.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipelines.evaluate.protocol import Measured
from trainables.features.split import SplitFeatures
from trainables.media.clips import Clip, is_clip, sample
from trainables.media.images import decode

SIDE = 160  # longest side of a thumbnail, pixels
SHOWN = 5
STRIP = 4  # frames of a clip
COLUMNS = ("id", "image")
RULE = (
    "Gallery: half are the captions whose 1/rank the selected adapter raised most, a quarter are "
    "evenly spaced among those it left as they were, a quarter those it lowered most; one an image."
)


def choose(before: Tensor, after: Tensor, images: Tensor, count: int) -> list[int]:
    """At most `count` of the captions by `RULE`, from their 1/rank and their image, all (M,).

    Where one kind is short the others fill up, in the same order.
    """
    gain = after - before
    order = gain.argsort(descending=True, stable=True)
    same = (gain == 0).nonzero().flatten()
    shares = [count - 2 * (count // 4), count // 4, count // 4]
    spaced = torch.linspace(0, len(same) - 1, min(shares[1], len(same))).long()
    kinds = [
        order[gain[order] > 0].tolist(),
        [*same[spaced].tolist(), *same.tolist()],
        order[gain[order] < 0].flip(0).tolist(),
    ]
    chosen: list[int] = []
    seen: set[int] = set()

    def take(captions: Iterable[int], wanted: int) -> None:
        for caption in captions:
            image = int(images[caption])
            if wanted > 0 and image not in seen:
                seen.add(image)
                chosen.append(caption)
                wanted -= 1

    for captions, share in zip(kinds, shares, strict=True):
        take(captions, share)
    for captions in kinds:
        take(captions, count - len(chosen))
    return sorted(chosen, key=lambda caption: (-float(gain[caption]), caption))


def gallery(
    before: Measured,
    after: Measured,
    data: SplitFeatures,
    rows: Iterator[dict[str, Any]],
    count: int,
) -> list[dict[str, Any]]:
    """`rows` are the split's, with the columns `COLUMNS`; they are read once."""
    images, texts = data.caption_rows, data.texts()  # M
    captions = choose(before.values["t2i_mrr"], after.values["t2i_mrr"], images, count)
    nearest = {c: [_nearest(model, c) for model in (before, after)] for c in captions}
    needed = {int(images[c]) for c in captions}
    needed |= {row for both in nearest.values() for one in both for row, _ in one}
    wanted = {data.ids[row]: row for row in needed}
    thumbs = {wanted[r["id"]]: thumbnail(r["image"]) for r in rows if r["id"] in wanted}

    def shown(caption: int, found: list[tuple[int, float]]) -> list[dict[str, Any]]:
        return [
            {
                "id": data.ids[row],
                "score": score,
                "hit": row == int(images[caption]),
                "thumb": thumbs[row],
            }
            for row, score in found
        ]

    return [
        {
            "query": texts[caption],
            "image_id": data.ids[row],
            "truth": thumbs[row],
            "before": shown(caption, nearest[caption][0]),
            "after": shown(caption, nearest[caption][1]),
        }
        for caption in captions
        for row in [int(images[caption])]
    ]


def _nearest(model: Measured, caption: int) -> list[tuple[int, float]]:
    assert model.predictions is not None
    scores = model.predictions.image_embeds @ model.predictions.text_embeds[caption]  # (N,)
    order = scores.argsort(descending=True, stable=True)[:SHOWN]
    return [(int(row), round(float(scores[row]), 4)) for row in order]


def thumbnails(data: bytes) -> list[str]:
    """An image file as one small picture, a clip as `STRIP` of them in the order of time."""
    if not is_clip(data):
        return [thumbnail(data)]
    clip = Clip.open(data)
    return [_small(frame) for frame in clip.frames(sample(clip, STRIP, "uniform"))]


def thumbnail(data: bytes, side: int = SIDE) -> str:
    """An image file as a small JPEG in a data URI, without the original's metadata."""
    return _small(decode(data), side)


def jpeg(pixels: Tensor, side: int) -> bytes:
    """uint8 (3, H, W) as a small JPEG."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _small(pixels: Tensor, side: int = SIDE) -> str:
    """The same as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(pixels, side)).decode()
