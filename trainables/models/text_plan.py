"""The plan of what is computed for some captions: integers alone, made on the CPU.

Flows in: ragged token ids (N captions) and the form of the prompt that is inserted among them.
Flows out: a `Plan`, kept with the tokens: which nodes go through the text tower, which node attends
to which, and where each caption's embedding stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.data.batches import Tokens
from trainables.data.transfer import send
from trainables.errors import ConfigError, DataError
from trainables.models.backbone import Backbone
from trainables.models.text_attention import Ints, Packing, Pattern, grown, rounded

ROWS_A_PASS = 512  # without gradients: what bounds the memory, and stays in a CPU's cache
Place = Literal["after_sos", "before_eot", "front", "after_name", "around_name"]


@dataclass(frozen=True)
class Prompt:
    """Vectors to insert into every caption as if they were word embeddings.

    `of` says which of K prompts each caption gets; without it, caption n gets prompt n. `deep` are
    vectors that take the prompt's places again before blocks 1 to D (block 0 is the first), as in
    deep prompting (VPT-deep, Jia et al. 2022; MaPLe, Khattak et al. 2023). SigLIP has no SOS:
    `after_sos` and `front` are one place there. For captions that are a name and a full stop,
    `after_name` is between the two, and `around_name` has the first half of the vectors in front of
    the name, the others behind it.

    >>> from trainables.models.text_tower import embed_text
    >>> tokens = backbone.tokenize(["a dog", "a red ball"])[0]
    >>> embed_text(backbone, tokens, Prompt(torch.randn(4, backbone.text_width))).shape  # (N, e)
    torch.Size([2, 16])
    """

    vectors: Tensor  # (P, d) for all captions, or (K, P, d)
    place: Place = "after_sos"
    deep: Tensor | None = None  # (D, P, d)
    of: Tensor | None = None  # (N,) int64

    @property
    def length(self) -> int:
        return self.vectors.shape[-2]

    @property
    def shared(self) -> bool:
        """Whether all captions get the same vectors."""
        return self.vectors.dim() == 2 and self.of is None

    def owners(self, captions: int) -> Tensor:
        """Which of the K prompts each caption gets: (N,)."""
        if self.of is not None:
            return self.of.cpu()
        if len(self.vectors) != captions:
            raise DataError(
                f"`vectors` must hold one prompt for each of {captions} captions, "
                f"got {len(self.vectors)}."
            )
        return torch.arange(captions)


@dataclass(frozen=True)
class Form:
    """All that a plan depends on besides the captions."""

    tower: tuple[object, ...]
    share: bool
    grad: bool
    few: bool  # shapes rounded up to few: a step recorded for one batch is replayed for others
    length: int = 0  # of the prompt, 0: none
    place: Place = "after_sos"
    owners: tuple[int, ...] = ()  # of each caption the number of its prompt; none: 0 for all

    @classmethod
    def of(cls, backbone: Backbone, tokens: Tokens, prompt: Prompt | None, share: bool) -> Form:
        text = backbone.model.config.text_config
        tower = (
            *(backbone.kind, backbone.device, text.num_attention_heads, text.vocab_size),
            *(backbone.context_length, backbone.start_token, backbone.pad_token),
            backbone.pads_left,
        )
        grad = torch.is_grad_enabled()
        few = few_shapes(backbone.device)
        if prompt is None:
            return cls(tower, share, grad, few)
        owners = tuple(prompt.owners(len(tokens)).tolist()) if prompt.vectors.ndim == 3 else ()
        return cls(tower, share, grad, few, prompt.length, prompt.place, owners)


def few_shapes(device: torch.device) -> bool:
    """Whether steps on the device are recorded, and so need few distinct shapes
    (`cuda_graphs.py`)."""
    return device.type != "cpu"


@dataclass(frozen=True)
class Plan:
    """What is computed for some captions: integers alone, made on the CPU."""

    layouts: list[Layout]  # one a pass
    row: Tensor  # (N,) int64: which row of all layouts each caption is

    @classmethod
    def of(cls, backbone: Backbone, tokens: Tokens, form: Form) -> Plan:
        """The plan of captions. Raises `DataError` where there is no caption or one is too long for
        the tower."""
        check(backbone, tokens, form.length)
        if form.length:
            tokens, _ = fit(backbone, tokens, form.length)
        content = contents(backbone, tokens, form)
        row = np.arange(len(content))
        if form.share and backbone.kind == "clip":
            content, row = _distinct(content)
        each = len(content) if form.grad else ROWS_A_PASS
        parts = [content[start : start + each] for start in range(0, len(content), each)]
        return cls([Layout.of(backbone, part, form) for part in parts], torch.from_numpy(row))


def plan(backbone: Backbone, tokens: Tokens, form: Form) -> Plan:
    """The plan on the device. It is kept with the tokens, so captions that stay, as a class's do,
    are planned once.

    >>> tokens = backbone.tokenize(["a dog", "a red ball", "a dog"])[0]
    >>> form = Form.of(backbone, tokens, prompt=None, share=True)
    >>> plan(backbone, tokens, form).row  # of equal captions, one row
    tensor([1, 0, 1])
    """
    if form not in tokens.plans:
        tokens.plans[form] = send(Plan.of(backbone, tokens, form), backbone.device)
    made: Plan = tokens.plans[form]
    return made


def check(backbone: Backbone, tokens: Tokens, added: int) -> None:
    if len(tokens) == 0:
        raise DataError("a batch must hold at least 1 caption, got 0.")
    longest = int(tokens.lengths.max())
    if not added and longest > backbone.context_length:
        raise DataError(
            f"a caption must have at most {backbone.context_length} tokens, the text tower's "
            f"positions, got {longest}."
        )


def contents(backbone: Backbone, tokens: Tokens, form: Form) -> Ints:
    """The content of each position, (N, W): a token's id, V + k P + j for vector j of prompt k, or
    -1 behind the end. W is the longest caption with its prompt, for SigLIP L."""
    lengths, added = tokens.lengths.numpy(), form.length
    if backbone.kind != "siglip":
        fill, width = -1, int(lengths.max()) + added
    else:
        fill, width = backbone.pad_token, backbone.context_length
    content = np.full((len(tokens), width), fill, np.int32)
    words = np.arange(width) < lengths[:, None] + added
    if added:
        vector = np.arange(added)
        owner = np.array(form.owners or [0])[:, None]
        row = np.arange(len(tokens))[:, None]
        places = _places(backbone, lengths[:, None], form.place, added)
        content[row, places] = backbone.model.config.text_config.vocab_size + owner * added + vector
        words[row, places] = False
    content[words] = tokens.ids.numpy()
    if backbone.pads_left:
        ahead = (np.arange(width) + lengths[:, None] + added) % width  # of each place, its source
        content = np.take_along_axis(content, ahead, 1)
    return content


def _distinct(content: Ints) -> tuple[Ints, NDArray[np.int64]]:
    """The distinct rows, sorted as a trie is, and for each row the distinct one that it equals."""
    apart = (content != content[0]).any(0).argmax()  # what all begin with need not be compared
    keys = (content[:, apart:] + 1).astype(">u4")  # as bytes they sort as the numbers do
    order = keys.view(f"S{keys.itemsize * keys.shape[1]}")[:, 0].argsort()
    content = content[order]
    new = np.ones(len(content), np.bool_)
    new[1:] = (content[1:] != content[:-1]).any(1)
    row = np.empty(len(content), np.int64)
    row[order] = new.cumsum() - 1
    return content[new], row


@dataclass(frozen=True)
class Layout:
    """The nodes, and which attends to which: all that depends on the captions alone."""

    content: Tensor  # (T,) int32, as in `contents`
    position: Tensor  # (T,) int32
    attention: Pattern  # of all nodes
    ends: Tensor  # (U,) int32, the node that each row's embedding is read from
    last: Pattern  # of those nodes

    @classmethod
    def of(cls, backbone: Backbone, content: Ints, form: Form) -> Layout:
        """The layout of distinct rows `content` (U, W), sorted where they share."""
        clip = backbone.kind == "clip"
        size = rounded if form.few else int  # `int` leaves a number as it is
        position = np.arange(size(content.shape[1]), dtype=np.int32)
        lengths = (content >= 0).sum(1, dtype=np.int32)
        shared = np.zeros_like(lengths)  # what a row has in common with the one before
        if form.share and clip:
            shared[1:] = (content[1:] != content[:-1]).argmax(1)
        own = lengths - shared
        first = own.cumsum(dtype=np.int32) - own  # the first node that is a row's own
        number = (first - shared)[:, None] + position
        new = (position >= shared[:, None]) & (position < lengths[:, None])
        if form.share and clip:
            path = np.maximum.accumulate(np.where(new, number, 0))
        else:
            path = np.minimum(number, (first + own - 1)[:, None])
        rows = np.arange(len(own)).repeat(own)  # of each node
        at = np.arange(len(rows)) - (first - shared)[rows]
        count, nodes = size(len(path)), size(len(rows))
        packing = Packing(
            grown(path, count),
            grown(lengths, count, 1),
            grown(own, count),
            backbone.model.config.text_config.num_attention_heads,
            form.few,
        )
        ends = packing.path[np.arange(count), packing.lengths - 1]
        return cls(
            torch.from_numpy(grown(content[rows, at], nodes)),
            torch.from_numpy(grown(position[at], nodes)),
            packing.every(nodes),
            torch.from_numpy(ends),
            packing.last(),
        )


def fit(backbone: Backbone, tokens: Tokens, added: int) -> tuple[Tokens, int]:
    """Captions cut so that `added` more vectors fit into L, EOT kept; and how many were cut."""
    special = 1 if backbone.start_token is None else 2
    limit = backbone.context_length - added
    if limit < special + 1:
        raise ConfigError(
            f"a prompt of {added} vectors leaves no room for a word: the text tower has "
            f"{backbone.context_length} positions, and {special} are for special tokens, so it "
            f"must be at most {backbone.context_length - special - 1}."
        )
    lengths = tokens.lengths
    cut = int((lengths > limit).sum())
    if cut == 0:
        return tokens, 0
    kept = lengths.clamp(max=limit)
    offsets = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    within = torch.arange(int(offsets[-1]), device=kept.device) - offsets[:-1].repeat_interleave(
        kept
    )
    ids = tokens.ids[tokens.offsets[:-1].repeat_interleave(kept) + within]
    ids[offsets[1:] - 1] = tokens.ids[tokens.offsets[1:] - 1]
    return Tokens(ids, offsets), cut


def _places(backbone: Backbone, lengths: Ints, place: Place, added: int) -> Ints:
    """The positions of the prompt's vectors in captions of `lengths` (N, 1): (N, P)."""
    vector = np.arange(added)
    start = int(place != "front" and backbone.start_token is not None)
    ahead = np.full_like(lengths, start)  # words in front of each vector
    if place == "before_eot":
        ahead = lengths - 1
    elif place == "after_name":
        ahead = (lengths - 2).clip(min=start)
    elif place == "around_name":
        ahead = np.where(vector < added // 2, ahead, (lengths - 2).clip(min=start))
    return ahead + vector
