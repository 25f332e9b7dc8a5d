"""The frozen CLIP or SigLIP that everything adapts.

Flows in: the parts of a model, as `load.py` reads them from a folder. Flows out: both towers frozen
and in eval mode, tokenizer and preprocessing, and a fingerprint of every file that can change a
number. The towers' computations are in `image_tower.py` and `text_tower.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from trainables.data.batches import Tokens
from trainables.hardware import Resolved, autocast
from trainables.media.preprocess import Preprocess
from trainables.models.cleaning import Cleaning, clean
from trainables.models.model_folder import isolated


@dataclass(frozen=True)
class Backbone:
    """A frozen two-tower model.

    CLIP (Radford et al. 2021): causal text tower, captions end at their EOT. SigLIP (Zhai et al.
    2023): the text tower sees all of its L positions, and scores have a bias. Dual: any two towers
    (`dual.py`).
    """

    name: str
    revision: str | None
    fingerprint: str  # of its folder's files
    kind: Literal["clip", "siglip", "dual", "embeddings"]  # the last: texts as given
    model: Any  # transformers' own, or `GivenTexts`
    tokenizer: Any
    preprocess: Preprocess
    embed_dim: int  # e, of the joint space
    text_width: int  # d, of the text tower
    context_length: int  # L, positions of the text tower
    start_token: int | None  # SOT; SigLIP has none
    end_token: int  # EOT
    pad_token: int
    scale: float  # exp(logit_scale): similarities are multiplied by it
    bias: float  # SigLIP's logit_bias, else 0
    device: torch.device
    precision: Resolved = "fp32"  # what its frozen outputs are computed in: that of the store
    pads_left: bool = False  # SigLIP: which end of its L positions the padding stands at
    cleaning: Cleaning = "none"  # of texts, before they are tokenised
    # What else a process loaded to work with it.
    beside: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def word_matrix(self) -> Tensor:
        """The table of token embeddings that the text tower reads: (V, d)."""
        text = self.model.text_model
        own = self.kind != "dual"
        table = text.embeddings.token_embedding if own else text.get_input_embeddings()
        weight: Tensor = table.weight.detach()
        return weight

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Compute in `precision` without gradients, whatever precision the trial that asks computes
        in: the results are shared by all trials, and val and test come from the same arithmetic."""
        with torch.no_grad(), autocast(self.precision, self.device):
            yield

    def tokenize(self, texts: Sequence[str]) -> tuple[Tokens, int]:
        """Texts as ragged ids with SOT and EOT, and how many had to be cut to L (EOT is kept).

        A special token's name inside a text, such as `<|endoftext|>`, is text like any other.
        """
        start = [] if self.start_token is None else [self.start_token]
        room = self.context_length - len(start) - 1
        words: list[list[int]] = []
        if texts:  # the tokenizer refuses an empty list
            words = self.tokenizer(
                [clean(text, self.cleaning) for text in texts],
                add_special_tokens=False,
                split_special_tokens=True,
                verbose=False,
            )["input_ids"]
        rows = [torch.tensor([*start, *ids[:room], self.end_token]) for ids in words]
        lengths = torch.tensor([0, *map(len, rows)])
        ids = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
        return Tokens(ids, lengths.cumsum(0)), sum(len(ids) > room for ids in words)

    def isolated(self) -> Backbone:
        """The same weights under other module objects: modules that PEFT injects there stay
        there."""
        return replace(self, model=isolated(self.model))
