"""The features of one split, whole or in part: a trial trains and is measured on them.

Flows in: embeddings, ids and captions, mapped from a store or just embedded. Flows out:
`SplitFeatures`, which hands out rows, texts and neighbours, and makes views, states and text
embeddings when they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainables.data.batches import Tokens
from trainables.errors import DataError
from trainables.features.classes import Classes
from trainables.features.lazy_parts import LazyParts
from trainables.features.neighbours import nearest_images
from trainables.metrics.captioning import References

if TYPE_CHECKING:
    from trainables.models.language_model import LanguageModel


@dataclass(frozen=True)
class SplitFeatures:
    """One split: N images and their M captions. View 0 of an image is the clean one, whose
    embedding the store holds; `lazy` makes all else when it is asked for.

    `take` makes labelled images of a part of the split, for classification. `one_row_an_image` is
    the form in which captions are measured.
    """

    ids: list[str]  # N
    image_embeds: Tensor  # (N, e) float32, or float16 as given; not normalised
    pixels: Tensor | None  # (N, 3, R, R) uint8
    tokens: Tokens  # M captions
    caption_rows: Tensor  # (M,) int64, ascending: the image of each caption
    groups: Tensor  # (N,) int64: equal where the images' bytes are
    truncated: int = 0  # captions that were cut to the text tower's length
    views: int = 0  # augmented ones, which training shows in turn
    lazy: LazyParts | None = None
    nearest: dict[int, Tensor] = field(default_factory=dict)  # what `neighbours` has found
    whole: SplitFeatures | None = None  # what this is a part of
    source: Tensor | None = None  # (N,) int64: of a part, the rows of the whole
    said: Tensor | None = None  # (M,) int64: of a part, the captions of the whole
    labels: Tensor | None = None  # (N,) int64
    classes: Classes | None = None  # C
    frame_embeds: Tensor | None = None  # (N, F, e) float32; `image_embeds` are then their means
    others: tuple[SplitFeatures, ...] = ()  # labelled parts of the same split, of other classes
    given_texts: Tensor | None = None  # (M, e) embeddings of the captions, where given as such

    def take(self, examples: Mapping[str, int], classes: Classes) -> SplitFeatures:
        """The images with these ids as examples of classes, by label; `pixels` stay the whole's."""
        rows = torch.tensor([n for n, id_ in enumerate(self.ids) if id_ in examples])
        if len(rows) < len(examples):
            missing = sorted(examples.keys() - set(self.ids))[0]
            raise DataError(f"image `{missing}` of the draw is not in the feature store.")
        captions = torch.isin(self.caption_rows, rows).nonzero()[:, 0]
        part = self._part(rows, captions, torch.searchsorted(rows, self.caption_rows[captions]))
        labels = torch.tensor([examples[id_] for id_ in part.ids])
        return replace(part, labels=labels, classes=classes, others=())

    def one_row_an_image(self) -> SplitFeatures:
        """Each image once, by its first row, with the captions of all rows of the same bytes. A
        caption that an earlier row has is not taken again; a caption that one row has twice stays
        twice.

        So it does not matter for what is measured whether a source repeats an image for each
        caption. Rows of the same bytes under different labels stay apart.
        """
        labels = torch.zeros_like(self.groups) if self.labels is None else self.labels
        which = list(zip(self.groups.tolist(), labels.tolist(), strict=True))  # N
        rows: dict[tuple[int, int], int] = {}  # the first of each image
        for row, one in enumerate(which):
            rows.setdefault(one, row)
        if len(rows) == len(which):
            return self
        place = {one: number for number, one in enumerate(rows)}
        image = [place[one] for one in which]  # N
        texts = self._comparable()
        known: list[Counter[Hashable]] = [Counter() for _ in rows]  # of each image, so far
        own: list[Counter[Hashable]] = [Counter() for _ in image]  # of each row
        kept = []
        for caption, row in enumerate(self.caption_rows.tolist()):
            text, said = texts[caption], known[image[row]]
            own[row][text] += 1
            if own[row][text] > said[text]:
                said[text] += 1
                kept.append((image[row], caption))
        caption_rows, captions = torch.tensor(sorted(kept), dtype=torch.int64).view(-1, 2).T
        return self._part(torch.tensor(list(rows.values())), captions, caption_rows)

    def _comparable(self) -> Sequence[Hashable]:
        """For each caption a value that is equal where captions are: the text, or the embedding
        where it was given as such, maybe without words."""
        if self.given_texts is None:
            return self.texts()
        return [embed.numpy().tobytes() for embed in self.given_texts]

    def _part(self, rows: Tensor, captions: Tensor, caption_rows: Tensor) -> SplitFeatures:
        """Images `rows` (N,) with `captions` (M,), which are those of its images `caption_rows`."""
        return replace(
            self,
            ids=[self.ids[row] for row in rows.tolist()],
            image_embeds=self.image_embeds[rows].float(),
            frame_embeds=None if self.frame_embeds is None else self.frame_embeds[rows],
            tokens=self.tokens.select(captions),
            caption_rows=caption_rows,
            groups=self.groups[rows],
            labels=None if self.labels is None else self.labels[rows],
            nearest={},
            whole=self.whole or self,
            source=rows if self.source is None else self.source[rows],
            said=captions if self.said is None else self.said[captions],
            given_texts=None if self.given_texts is None else self.given_texts[captions].float(),
        )

    def embeds(self, rows: Tensor, view: int = 0) -> Tensor:
        """The frozen image tower's outputs for a view of `rows` (B,): (B, e)."""
        if view == 0:
            return self.image_embeds[rows].float()
        embeds: Tensor = self._more.view(view)["image_embeds"][self._whole(rows)]
        return embeds

    def _whole(self, rows: Tensor) -> Tensor:
        return rows if self.source is None else self.source[rows]

    def text_embeds(self) -> Tensor:
        """The frozen text tower's outputs for all captions: (M, e)."""
        if self.given_texts is not None:
            return self.given_texts
        if self.whole is not None and self.said is not None:
            return self.whole.text_embeds()[self.said]
        return self._more.text_embeds(self.tokens)

    def texts(self) -> list[str]:
        """All captions as they were written: M."""
        texts = self._more.texts()
        return texts if self.said is None else [texts[row] for row in self.said.tolist()]

    def words(self, lm: LanguageModel) -> Tokens:
        """All captions in a language model's own tokens, each with its end token: M."""
        words = self._more.words(lm)
        return words if self.said is None else words.select(self.said)

    def texts_of_images(self) -> list[list[str]]:
        """The captions of each image, as they were written: N."""
        every: list[list[str]] = [[] for _ in self.ids]
        for row, text in zip(self.caption_rows.tolist(), self.texts(), strict=True):
            every[row].append(text)
        return every

    @cached_property
    def references(self) -> References:
        """The N images' captions as references, against which a model's captions are measured."""
        return References(self.texts_of_images())

    def hidden(self, rows: Tensor, view: int, block: int) -> Tensor:
        """The image tower's states before block `block` for a view of `rows` (B,): (B, S, w)."""
        if self.pixels is None:
            raise DataError(
                "adapters of the image tower need pixels, the feature store has none: "
                "`cliptune encode --pixels`."
            )
        pixels = self.pixels if view == 0 else self._more.view(view)["pixels"]
        return self._more.hidden(pixels, self._whole(rows), view, block)

    def neighbours(self, k: int) -> Tensor:
        """`nearest_images` of all clean views, once a process: (N, k) int64."""
        if k not in self.nearest:
            self.nearest[k] = nearest_images(self.image_embeds, k, self.groups)
        return self.nearest[k]

    @property
    def _more(self) -> LazyParts:
        if self.lazy is None:
            raise ValueError("these features were opened without their backbone.")
        return self.lazy
