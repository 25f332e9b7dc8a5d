"""What is computed for some captions: integers alone, made on the CPU.

Flows in: ragged token ids and the form of what is inserted among them. Flows out: a `Plan`, kept
with the tokens: which nodes go through the text tower, who looks at whom, and where each caption's
embedding stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.backbone import Backbone
from trainables.data import Tokens
from trainables.errors import ConfigError, DataError
from trainables.text_attention import ROUNDED, Attention, Packing

if TYPE_CHECKING:
    from trainables.text_tower import Prompt

ROWS_A_PASS = 512  # without gradients: what bounds the memory, and stays in a CPU's cache
Place = Literal["after_sos", "before_eot", "front", "after_name", "around_name"]


@dataclass(frozen=True)
class Form:
    """All that a plan depends on besides the captions."""

    tower: tuple[object, ...]
    share: bool
    grad: bool
    length: int = 0  # of the prompt, 0: none
    place: Place = "after_sos"
    owners: tuple[int, ...] = ()  # of each caption the number of its prompt; none: 0 for all

    @classmethod
    def of(cls, backbone: Backbone, tokens: Tokens, prompt: Prompt | None, share: bool) -> Form:
        text = backbone.model.config.text_config
        tower = (
            *(backbone.kind, backbone.device, text.num_attention_heads, text.vocab_size),
            *(backbone.context_length, backbone.start_token, backbone.pad_token),
        )
        grad = torch.is_grad_enabled()
        if prompt is None:
            return cls(tower, share, grad)
        owners = tuple(prompt.owners(len(tokens)).tolist()) if prompt.vectors.ndim == 3 else ()
        return cls(tower, share, grad, prompt.length, prompt.place, owners)


@dataclass(frozen=True)
class Plan:
    """What is computed for some captions: integers alone, made on the CPU, kept with the tokens."""

    layouts: list[Layout]  # one a pass
    row: Tensor  # (N,) int64: which row of all layouts each caption is

    @classmethod
    def of(cls, backbone: Backbone, tokens: Tokens, form: Form) -> Plan:
        """Raises `DataError` where there is no caption or one is too long for the tower."""
        _check(backbone, tokens, form.length)
        if form.length:
            tokens, _ = fit(backbone, tokens, form.length)
        content = _contents(backbone, tokens, form)
        row = torch.arange(len(content))
        if form.share and backbone.kind == "clip":
            content, row = content.unique(dim=0, return_inverse=True)  # sorted, as a trie is
        passes = [content] if form.grad else content.split(ROWS_A_PASS)
        layouts = [Layout.of(backbone, part, form.share) for part in passes]
        return cls(layouts, row.to(backbone.device))


def plan(backbone: Backbone, tokens: Tokens, form: Form) -> Plan:
    """Made once: captions that stay, as a class's do, keep theirs."""
    if form not in tokens.plans:
        tokens.plans[form] = Plan.of(backbone, tokens, form)
    made: Plan = tokens.plans[form]
    return made


def _check(backbone: Backbone, tokens: Tokens, added: int) -> None:
    if len(tokens) == 0:
        raise DataError("a batch must hold at least 1 caption, got 0.")
    longest = int(tokens.lengths.max())
    if not added and longest > backbone.context_length:
        raise DataError(
            f"a caption must have at most {backbone.context_length} tokens, the text tower's "
            f"positions, got {longest}."
        )


def _contents(backbone: Backbone, tokens: Tokens, form: Form) -> Tensor:
    """What stands at each position: a token's id, V + k P + j for vector j of prompt k, or -1.

    (N, W) int64, W the longest caption with its prompt, for SigLIP L.
    """
    lengths = tokens.lengths[:, None]
    words, added = int(lengths.max()), form.length
    clip = backbone.kind == "clip"
    position = torch.arange(words + added if clip else backbone.context_length)[None]
    index = position.expand(len(tokens), -1)
    if added:
        places = _places(backbone, lengths, form.place, added)
        inside = torch.zeros_like(index, dtype=torch.bool).scatter(1, places, True)
        number = inside.cumsum(1) - 1  # of the last vector up to here
        index = torch.where(inside, 0, index - number - 1)
    padded = tokens.pad(-1 if clip else backbone.pad_token, words).long()
    content = padded.gather(1, index.clamp(max=words - 1))
    content[index >= words] = -1 if clip else backbone.pad_token
    if added:
        owners = torch.tensor(form.owners or [0])[:, None]
        first = backbone.model.config.text_config.vocab_size + owners * added
        content = torch.where(inside, first + number, content)
    return content


@dataclass(frozen=True)
class Layout:
    """Which nodes there are and who looks at whom: all that depends on the captions alone."""

    content: Tensor  # (T,) int64, as in `_contents`
    position: Tensor  # (T,) int64
    attention: Attention  # of all nodes
    ends: Tensor  # (U,) int64, the node that each row's embedding is read from
    last: Attention  # of those nodes

    @classmethod
    def of(cls, backbone: Backbone, content: Tensor, share: bool) -> Layout:
        """The layout of distinct rows `content` (U, W), sorted where they share."""
        device, clip = backbone.device, backbone.kind == "clip"
        valid = content >= 0
        new = valid.clone()
        if share and clip:  # what a row has in common with the one before is that one's
            new[1:] &= (content[1:] != content[:-1]).cumsum(1) > 0
        number = new.flatten().cumsum(0).view_as(content) - 1
        path = torch.where(new, number, 0).cummax(0).values if share and clip else number
        step, nodes_step = ROUNDED[device.type]
        rows, width, nodes = -len(path) % step, -path.shape[1] % step, -int(new.sum()) % nodes_step
        path = F.pad(path, (0, width, 0, rows))
        packing = Packing(
            path,
            F.pad(valid.sum(1), (0, rows), value=1),
            F.pad(new.sum(1), (0, rows)),
            backbone.model.config.text_config.num_attention_heads,
            clip,
            device,
        )
        position = torch.arange(content.shape[1]).expand_as(content)
        return cls(
            F.pad(content[new], (0, nodes)).to(device),
            F.pad(position[new], (0, nodes)).to(device),
            packing.attention(nodes),
            path.gather(1, packing.lengths[:, None] - 1)[:, 0].to(device),
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


def _places(backbone: Backbone, lengths: Tensor, place: Place, added: int) -> Tensor:
    """The positions of the prompt's vectors in each caption: (N, P)."""
    vector = torch.arange(added)
    start = int(place != "front" and backbone.start_token is not None)
    ahead = torch.full_like(lengths, start).expand(-1, added)  # words in front of each vector
    if place == "before_eot":
        ahead = lengths - 1
    elif place == "after_name":
        ahead = (lengths - 2).clamp(min=start)
    elif place == "around_name":
        ahead = torch.where(vector < added // 2, ahead, (lengths - 2).clamp(min=start))
    return ahead + vector
