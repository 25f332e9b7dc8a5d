"""The texts of classes that came with finished embeddings, in the place of a text tower.

Flows in: vectors (C x T, e) of C class names in T templates. Flows out: these and each class's mean
over its templates; and captions as numbers of these texts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.encode.layout import Given
from trainables.data.batches import Tokens
from trainables.errors import DataError
from trainables.models.given_texts import ALL, END, GivenWords


class ClassTexts:
    """The texts of classes, in each template and in all together."""

    def __init__(self, given: Given) -> None:
        self.texts: list[str] = []
        self.templates: list[str] = []
        self.embeds = torch.zeros(0, given.images.width)
        self.names: list[str] = []
        if given.class_texts is None:
            return
        given.class_texts.check()
        self.texts = [r["template"].replace("{}", r["class_name"]) for r in given.class_rows]
        self.templates = list(dict.fromkeys(r["template"] for r in given.class_rows))
        self.names = list(dict.fromkeys(r["class_name"] for r in given.class_rows))
        self.embeds = torch.from_numpy(np.concatenate(list(given.class_texts.chunks()))).float()
        self._check_whole(given)
        if ALL not in self.templates:
            self.embeds = torch.cat([self.embeds, self._together(given)])
            self.texts += self.names

    def _check_whole(self, given: Given) -> None:
        have = {(row["template"], row["class_name"]) for row in given.class_rows}
        for template in self.templates:
            for name in self.names:
                if (template, name) not in have:
                    raise DataError(
                        f"`{given.folder / 'text_metadata'}` must have each class in each "
                        f"template, got no `{name}` in `{template}`."
                    )

    def _together(self, given: Given) -> Tensor:
        """The mean of a class's templates, each of unit length before: (C, e)."""
        place = {name: n for n, name in enumerate(self.names)}
        rows = torch.tensor([place[row["class_name"]] for row in given.class_rows])
        sums = torch.zeros(len(place), self.embeds.shape[1])
        sums.index_add_(0, rows, F.normalize(self.embeds, dim=-1))
        return F.normalize(sums, dim=-1)


class Numbers:
    """Captions without a text tower: the class text that they name, or a number of their own."""

    def __init__(self, texts: ClassTexts) -> None:
        self.known = GivenWords({text: row for row, text in enumerate(texts.texts)})
        self.first = len(texts.texts) + 1

    def __call__(self, texts: list[str], first: int) -> tuple[Tokens, int, int]:
        ids = torch.full((len(texts), 2), END, dtype=torch.int64)
        ids[:, 0] = torch.arange(len(texts)) + self.first + first
        return Tokens(ids.flatten(), torch.arange(len(texts) + 1) * 2), 0, 0


def check_classes(given: Given, texts: ClassTexts | None, labels: Iterable[str]) -> None:
    """Raise where the texts are of other classes than the images': every score would be wrong."""
    if texts is None or not texts.names:
        return
    known = GivenWords({name: n for n, name in enumerate(texts.names)})
    for name in labels:
        try:
            known.row(name)
        except DataError:
            where = given.folder / "text_metadata"
            raise DataError(
                f"`{where}` has texts of other classes: none of `{name}`, which images have, but "
                f"of {', '.join(f'`{one}`' for one in sorted(texts.names)[:3])}, ..."
            ) from None
