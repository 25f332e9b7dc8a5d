"""The classes of a task, in the words that each method wants around them.

Flows in: class names and the data set's template. Flows out: token ids, and the frozen text tower's
embeddings, both made once for each template and kept for all trials of a process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.data.batches import Tokens
from trainables.errors import ConfigError
from trainables.models.backbone import Backbone
from trainables.models.text_tower import embed_text

DEFAULT = "a photo of a {}."
# Seven that together serve ImageNet as well as the 80 of the paper: the authors' own selection, in
# their notebook on prompt engineering (Radford et al. 2021).
ENSEMBLE = (
    "itap of a {}.|a bad photo of the {}.|a origami {}.|a photo of the large {}.|"
    "a {} in a video game.|art of the {}.|a photo of the small {}."
)


@dataclass(frozen=True)
class Classes:
    """C classes of one task, by label.

    `texts`: whole sentences about each class, as a language model describes it (CuPL: Pratt et al.
    2023, arXiv:2209.03320; Menon and Vondrick 2023); a class without any has its name in the
    template. With `ensemble`, the similarity of an image to a class is the mean of its similarities
    to the class's texts (Menon and Vondrick); without, it is the similarity to the mean of the
    texts' embeddings (CuPL).

    >>> classes = Classes(("dog", "cat"), "a photo of a {}.")
    >>> classes.text_embeds(backbone).shape  # (C, e)
    torch.Size([2, 16])
    """

    names: tuple[str, ...]
    template: str = DEFAULT
    texts: tuple[tuple[str, ...], ...] = ()
    kept: dict[tuple[str, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    ensemble: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        about: dict[str, Any] = {"names": list(self.names), "template": self.template}
        if self.texts:
            about["texts"] = [list(own) for own in self.texts]
        return about | ({"ensemble": True} if self.ensemble else {})

    @classmethod
    def of_json(cls, about: Mapping[str, Any]) -> Classes:
        texts = tuple(map(tuple, about.get("texts", ())))
        ensemble = about.get("ensemble", False)
        return cls(tuple(about["names"]), about["template"], texts, ensemble=ensemble)

    def tokens(self, backbone: Backbone, template: str = "", added: int = 0) -> Tokens:
        """The names in `template` as ids; `""` is the data set's own. Raises `ConfigError` where
        `added` vectors do not fit beside them into the text tower."""
        template = template or self.template
        key = ("tokens", backbone.fingerprint, template)
        if key not in self.kept:
            texts = [template.replace("{}", name) for name in self.names]
            self.kept[key] = backbone.tokenize(texts)
        tokens, cut = self.kept[key]
        room = backbone.context_length - added
        if cut or tokens.lengths.max() > room:
            name = self.names[int(tokens.lengths.argmax())]
            raise ConfigError(
                f"class `{name}` in `{template}` must have at most {room} tokens, the text tower's "
                f"{backbone.context_length} positions without {added} learned vectors, got "
                f"{'more' if cut else int(tokens.lengths.max())}."
            )
        found: Tokens = tokens
        return found

    def text_embeds(self, backbone: Backbone, templates: str = "") -> Tensor:
        """The classes as the frozen text tower embeds them, of unit length: (C, e). Several
        templates, separated by `|`, are averaged, normalised before and after; the `texts` of a
        class likewise, where no template is asked for. An ensemble is not normalised after
        averaging, so that its product with an image is the mean of the texts' products."""
        key = ("embeds", backbone.fingerprint, backbone.precision, templates)
        if key not in self.kept:
            with backbone.frozen():
                every = [
                    F.normalize(embed_text(backbone, self.tokens(backbone, one)).float(), dim=-1)
                    for one in templates.split("|")
                ]
                self.kept[key] = F.normalize(torch.stack(every).mean(0), dim=-1)
                if self.texts and not templates:
                    self.kept[key] = self._described(backbone, self.kept[key])
        embeds: Tensor = self.kept[key]
        return embeds

    def _described(self, backbone: Backbone, plain: Tensor) -> Tensor:
        """The mean of each class's own texts; `plain` (C, e) where it has none."""
        rows = []
        for name, own, row in zip(self.names, self.texts, plain, strict=True):
            tokens, cut = backbone.tokenize(own)
            if cut:
                raise ConfigError(
                    f"the texts of class `{name}` must have at most {backbone.context_length} "
                    f"tokens, got {cut} with more."
                )
            if not own:
                rows.append(row)
                continue
            every = F.normalize(embed_text(backbone, tokens).float(), dim=-1)
            mean = every.mean(0)
            rows.append(mean if self.ensemble else F.normalize(mean, dim=-1))
        return torch.stack(rows)
