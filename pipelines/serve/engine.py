"""Requests in, answers out: what came together goes through the frozen towers together.

Flows in: a batch of asks, of any adapters. Flows out: for each its answer, or why there is none: a
bad one leaves the others as they are. The frozen tower sees an image once, whichever adapter asks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipelines.classify.answers import calibration_of, choices, classified
from pipelines.serve import fields
from pipelines.serve.asks import Answer, Ask, Refused
from pipelines.serve.gallery import Gallery
from pipelines.serve.shelf import Served, Shelf
from pipelines.use.captions import write
from pipelines.use.embedding import features_of
from pipelines.use.queries import embed_words
from trainables.errors import CliptuneError, ConfigError
from trainables.features.split import SplitFeatures
from trainables.media.image_headers import BadImage
from trainables.media.images import decode_still
from trainables.models.backbone import Backbone
from trainables.models.image_tower import frozen_embeds
from trainables.training.predict import embed_images

# The task of an adapter that can do it, and what such a one does.
NEEDS = {
    "embed": ("retrieval", "puts words and images into one space"),
    "search": ("retrieval", "finds images"),
    "caption": ("captioning", "writes captions"),
}


@dataclass
class Wish:
    """An ask that may be answered, by whom, and its image: pixels, then as the tower saw it."""

    ask: Ask
    served: Served
    square: Tensor | None = None  # uint8 (3, R, R)
    embed: Tensor | None = None  # (e,)


class Engine:
    """Answers by the adapters of `shelf`, which may be another one from the next batch on."""

    def __init__(self, shelf: Shelf, gallery: Gallery) -> None:
        self.shelf, self.gallery = shelf, gallery
        self.pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # decoders release the GIL

    def answer(self, asks: Sequence[Ask]) -> list[Answer | Refused]:
        """For each of `asks` what it wished for, or why not."""
        shelf = self.shelf
        found: list[Wish | Answer | Refused] = [*self.pool.map(partial(self._wish, shelf), asks)]
        wishes = {n: one for n, one in enumerate(found) if isinstance(one, Wish)}
        _see(shelf.frozen, [wish for wish in wishes.values() if wish.square is not None])
        alike: dict[str, list[int]] = {}
        for n, wish in wishes.items():
            alike.setdefault(_manner(wish.ask), []).append(n)
        for some in alike.values():
            answers: Sequence[Answer | Refused] = self._together([wishes[n] for n in some])
            for n, answer in zip(some, answers, strict=True):
                found[n] = answer
        return [one for one in found if not isinstance(one, Wish)]

    def _wish(self, shelf: Shelf, ask: Ask) -> Wish | Refused:
        try:
            served = shelf[ask.adapter]
        except ConfigError as error:
            return Refused(str(error), 404)
        task, does = NEEDS.get(ask.what, (served.task, ""))
        if served.task != task or (ask.what == "classify" and task == "captioning"):
            others = [f"`{one.name}`" for one in shelf.adapters.values() if one.task == task]
            whose = f"`{ask.adapter}` is an adapter of {served.task}"
            return Refused(
                f"{whose}; one of {task} {does}: {', '.join(others) or 'none is served'}."
            )
        if ask.like and ask.like not in self.gallery.row_of:
            return Refused(f"no image is called `{ask.like[:200]}`.", 404)
        if ask.image is None:
            return Wish(ask, served)
        if served.model.backbone.kind == "embeddings":
            return Refused(
                f"`{ask.adapter}` is on finished embeddings: it has no tower for images."
            )
        try:
            square = shelf.frozen.preprocess.apply(decode_still(ask.image))
            return Wish(ask, served, square)
        except BadImage as error:
            return Refused(f"the image cannot be taken: {error}", 415)

    def _together(self, wishes: list[Wish]) -> list[Answer] | list[Refused]:
        """The answers to wishes of one manner, which differ in their subject alone."""
        how = {
            "embed": self._embed,
            "search": self._search,
            "classify": self._classify,
            "caption": self._caption,
        }
        try:
            return how[wishes[0].ask.what](wishes)
        except CliptuneError as error:
            said = str(error).replace("`--", "`")  # flags of the command are fields here
            return [Refused(said) for _ in wishes]

    def _embed(self, wishes: list[Wish]) -> list[Answer]:
        return [{"embeddings": rows.tolist()} for rows in self._vectors(wishes)]

    def _search(self, wishes: list[Wish]) -> list[Answer]:
        served, where = wishes[0].served, wishes[0].ask.where
        assert served.index is not None
        assert served.rows is not None
        left = fields.mask(self.gallery.fields, where)  # (N,)
        mask = None if left is None else left[served.rows]  # (n,)
        asked = torch.cat(self._vectors(wishes))
        most = max(wish.ask.top + bool(wish.ask.like) for wish in wishes)
        cosines, rows = served.index.top(asked, most, mask)  # (Q, most)
        pairs = zip(wishes, cosines.tolist(), served.rows[rows].tolist(), strict=True)
        return [self._matches(wish.ask, *found) for wish, *found in pairs]

    def _matches(self, ask: Ask, cosines: list[float], rows: list[int]) -> Answer:
        """What was found; an image that the search began with is not found by itself."""
        matches = [
            {
                "name": self.gallery.names[row],
                "cosine": cosine,
                "fields": fields.row(self.gallery.fields, row),
            }
            for cosine, row in zip(cosines, rows, strict=True)
            if self.gallery.names[row] != ask.like
        ]
        return {"adapter": ask.adapter, "matches": matches[: ask.top]}

    def _classify(self, wishes: list[Wish]) -> list[Answer]:
        ask, served = wishes[0].ask, wishes[0].served
        classes = choices(served.model, ask.classes, ask.template)
        how = (ask.confidence, ask.sets)
        calibration = calibration_of(served.model, not ask.classes, *how)
        top = max(wish.ask.top for wish in wishes)
        rows = classified(served.model, _features(wishes), classes, top, calibration, *how)
        return [
            {"adapter": ask.adapter} | row | {"classes": row["classes"][: wish.ask.top]}
            for wish, row in zip(wishes, rows, strict=True)
        ]

    def _caption(self, wishes: list[Wish]) -> list[Answer]:
        model = wishes[0].served.model
        embeds = _features(wishes).image_embeds
        texts = write(model, embeds[:, None].expand(-1, max(1, model.seen.count), -1))
        name = wishes[0].ask.adapter
        return [{"adapter": name, "caption": text} for text in texts]

    def _vectors(self, wishes: list[Wish]) -> list[Tensor]:
        """Of each wish its subjects, of unit length: (T, e)."""
        served = wishes[0].served
        adapter = served.model.adapter
        found: dict[int, Tensor] = {}
        if texts := [text for wish in wishes for text in wish.ask.texts]:
            parts = embed_words(adapter, texts).split([len(wish.ask.texts) for wish in wishes])
            found |= {n: part for n, part in enumerate(parts) if len(part)}
        if pictures := [n for n, wish in enumerate(wishes) if wish.embed is not None]:
            seen = embed_images(adapter, _features([wishes[n] for n in pictures])).cpu()
            found |= dict(zip(pictures, seen[:, None], strict=True))
        for n, wish in enumerate(wishes):
            if wish.ask.like:
                found[n] = self._known(served, wish.ask.like)
        return [found[n] for n in range(len(wishes))]

    def _known(self, served: Served, name: str) -> Tensor:
        """An image that is served, as it is in the index: (1, e)."""
        assert served.index is not None
        assert served.rows is not None
        place = (served.rows == self.gallery.row_of[name]).nonzero()[:, 0]
        if not len(place):
            raise ConfigError(f"`{name}` cannot be read: it is not in the index.")
        return served.index.embeds(place)


def _manner(ask: Ask) -> str:
    """Equal for asks that can be answered together."""
    return repr(
        (ask.what, ask.adapter, ask.where, ask.classes, ask.template, ask.confidence, ask.sets)
    )


def _see(frozen: Backbone, wishes: list[Wish]) -> None:
    """All images through the frozen tower, which is the same for all adapters."""
    if wishes:
        squares = torch.stack([wish.square for wish in wishes if wish.square is not None])
        for wish, embed in zip(wishes, frozen_embeds(frozen, squares), strict=True):
            wish.embed = embed


def _features(wishes: list[Wish]) -> SplitFeatures:
    """The images of `wishes`, as their adapter takes them."""
    adapter = wishes[0].served.model.adapter
    embeds = torch.stack([wish.embed for wish in wishes if wish.embed is not None])
    pixels = None
    if adapter.image_block is not None:
        pixels = torch.stack([wish.square for wish in wishes if wish.square is not None])
    return features_of(adapter, [Path(str(n)) for n in range(len(wishes))], embeds, pixels)
