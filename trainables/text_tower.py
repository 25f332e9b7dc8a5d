"""The text tower on embeddings: the one function through which all text is encoded.

Flows in: ragged token ids, and optionally prompt vectors to insert among them. Flows out: one row a
caption in the joint space, differentiable in the prompt and in whatever was injected into the
tower's modules. It calls the model's own modules, so injected ones (PEFT's) take part.

What is computed is nodes, not padded rows. CLIP's tower is causal: the state at a position depends
on what stands up to it and on nothing else, so captions that begin alike share those positions. All
captions form a trie, and each of its nodes goes through the tower once: a prompt in front of every
caption once, `a photo of a` once, a caption that stands there twice once. The last block is
evaluated for the EOTs alone. All of it is exact, gradients too. SigLIP's tower sees everything in
both directions and is padded to L, as trained; there the nodes are all positions of all captions.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.backbone import Backbone
from trainables.data import Tokens
from trainables.errors import ConfigError, DataError

ROWS_A_PASS = 512  # without gradients: what bounds the memory, and stays in a CPU's cache
# On a GPU shapes are rounded up to few: a step recorded for one batch can be replayed for others.
ROUNDED = {"cpu": (1, 1), "cuda": (16, 64)}  # rows (a divisor of a pass's) and positions, nodes
Place = Literal["after_sos", "before_eot", "front", "after_name", "around_name"]


@dataclass(frozen=True)
class Prompt:
    """Vectors to insert into every caption as if they were word embeddings.

    `of` says which of K prompts each caption gets; without it, caption n gets prompt n.
    `deep`: vectors that take the prompt's places again before blocks 1 to D (block 0 is the first),
    as in deep prompting (VPT-deep, Jia et al. 2022; MaPLe, Khattak et al. 2023).
    SigLIP has no SOS: `after_sos` and `front` are one place there. For captions that are a name and
    a full stop, `after_name` is between the two, and `around_name` has the first half of the
    vectors in front of the name, the others behind it.
    """

    vectors: Tensor  # (P, d) for all captions, or (K, P, d)
    place: Place = "after_sos"
    deep: Tensor | None = None  # (D, P, d)
    of: Tensor | None = None  # (N,) int64

    @property
    def length(self) -> int:
        return self.vectors.shape[-2]

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


def embed_text(
    backbone: Backbone, tokens: Tokens, prompt: Prompt | None = None, share: bool = True
) -> Tensor:
    """Captions to the joint space, not normalised: (N, e).

    Captions that the prompt leaves no room for are cut, their EOT is kept; `fit` counts them.
    Without `share`, each caption has nodes of its own: for dropout, which draws for each node.
    """
    if prompt is not None and not prompt.length:  # its last vector was taken out
        prompt = None
    how = plan(backbone, tokens, Form.of(backbone, tokens, prompt, share))
    rows = torch.cat([_embed(backbone, layout, prompt) for layout in how.layouts])
    return F.embedding(how.row, rows)


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
class Group:
    """Rows that attend in one padded call: the queries are the nodes that a row owns, the keys all
    nodes on its path from the root. Numbers point into (nodes x heads) vectors of one head each."""

    queries: Tensor  # (n, h, q) int64
    keys: Tensor  # (n, h, k) int64
    mask: Tensor  # (n, 1, q, k) bool, true where a query may look


@dataclass(frozen=True)
class Attention:
    """Softmax attention from packed nodes to packed nodes."""

    groups: list[Group]
    back: Tensor  # (T, h) int64: where each node's output stands among those of all groups

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(T, d), (S, d), (S, d) to (T, d), in fp32: many rows' gradients meet in one node."""
        heads = self.back.shape[1]
        with torch.autocast(queries.device.type, enabled=False):
            q, k, v = (x.float().reshape(len(x) * heads, -1) for x in (queries, keys, values))
            done = [
                F.scaled_dot_product_attention(
                    F.embedding(group.queries, q),
                    F.embedding(group.keys, k),
                    F.embedding(group.keys, v),
                    attn_mask=group.mask,
                ).flatten(0, 2)
                for group in self.groups
            ]
            return F.embedding(self.back, torch.cat(done)).flatten(1)


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
        packing = _Packing(
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


@dataclass(frozen=True)
class _Packing:
    """How the rows of a layout attend. U rows, those that only round their number up included."""

    path: Tensor  # (U, W) int64: the node at each position of each row
    lengths: Tensor  # (U,)
    own: Tensor  # (U,) how many nodes at its end each row owns
    heads: int
    causal: bool
    device: torch.device

    def attention(self, unused: int) -> Attention:
        """Of all nodes, and `unused` ones that nobody looks at. On a CPU, rows that own a like
        number of nodes (within a factor of four) are padded together."""
        level = self.own.clamp(min=1).float().log2().div(2).ceil()
        if self.device.type != "cpu":
            level = torch.zeros_like(level)
        back = torch.zeros(int(self.own.sum()) + unused, self.heads, dtype=torch.int64)
        groups, before = [], 0
        for one in level.unique():
            rows = (level == one).nonzero()[:, 0]
            own, start = self.own[rows, None], (self.lengths - self.own)[rows, None]
            within = torch.arange(self._rounded(own))
            queries = self.path[rows].gather(1, (start + within).clamp(max=self.path.shape[1] - 1))
            owned = within < own  # (n, q)
            row = torch.arange(len(rows))[:, None]
            place = before + row * self.heads * len(within) + within  # (n, q)
            head = torch.arange(self.heads) * len(within)
            back[queries[owned]] = place[owned][:, None] + head
            groups.append(self._group(rows, queries, start + within))
            before += len(rows) * self.heads * len(within)
        return Attention(groups, back.to(self.device))

    def last(self) -> Attention:
        """Of each row's last position alone, as query number u."""
        every = torch.arange(len(self.path))
        group = self._group(every, every[:, None], self.lengths[:, None] - 1)
        back = every[:, None] * self.heads + torch.arange(self.heads)
        return Attention([group], back.to(self.device))

    def _group(self, rows: Tensor, queries: Tensor, positions: Tensor) -> Group:
        """`rows` (n,) with their `queries` (n, q), which stand at `positions` (n, q)."""
        width = self._rounded(self.lengths[rows])
        head = torch.arange(self.heads)[:, None]
        mask = torch.arange(width) <= positions[..., None]
        mask = mask if self.causal else torch.ones_like(mask)
        return Group(
            (queries[:, None] * self.heads + head).to(self.device),
            (self.path[rows, None, :width] * self.heads + head).to(self.device),
            mask[:, None].to(self.device),
        )

    def _rounded(self, lengths: Tensor) -> int:
        step = ROUNDED[self.device.type][0]
        return -(-int(lengths.max()) // step) * step


def _embed(backbone: Backbone, layout: Layout, prompt: Prompt | None) -> Tensor:
    """The rows of a layout: (U, e)."""
    model = backbone.model.text_model
    hidden, slot = _first(backbone, layout, prompt)  # (T, d), (T,)
    deep = prompt.deep if prompt is not None else None
    *blocks, final = model.encoder.layers
    if deep is not None and len(deep) > len(blocks):
        raise ConfigError(
            f"a deep prompt must have fewer than {len(blocks) + 1} layers, the tower's blocks "
            f"without the first, got {len(deep)}."
        )
    with _kernel(hidden.device):
        for number, block in enumerate([*blocks, final]):
            if deep is not None and 1 <= number <= len(deep):
                again = F.embedding(slot.clamp(min=0), deep[number - 1])  # (T, d)
                hidden = torch.where((slot >= 0)[:, None], again, hidden)
            if block is not final:
                hidden = _block(block, hidden, layout.attention)
        hidden = _block(final, hidden, layout.last, layout.ends)  # (U, d)
    hidden = model.final_layer_norm(hidden)
    clip = backbone.kind == "clip"
    embeds: Tensor = backbone.model.text_projection(hidden) if clip else model.head(hidden)
    return embeds


def _block(block: Any, hidden: Tensor, attention: Attention, rows: Tensor | None = None) -> Tensor:
    """A transformer block on packed nodes (T, d), evaluated for `rows` alone if given."""
    normed, projections = block.layer_norm1(hidden), block.self_attn
    queries = normed if rows is None else F.embedding(rows, normed)
    hidden = hidden if rows is None else F.embedding(rows, hidden)
    mixed = attention(
        projections.q_proj(queries), projections.k_proj(normed), projections.v_proj(normed)
    )
    hidden = hidden + projections.out_proj(mixed)
    changed: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
    return changed


def _first(backbone: Backbone, layout: Layout, prompt: Prompt | None) -> tuple[Tensor, Tensor]:
    """The states before block 0, (T, d), and which prompt vector each node is (-1: none), (T,)."""
    embeddings = backbone.model.text_model.embeddings
    vocabulary = backbone.model.config.text_config.vocab_size
    slot = layout.content - vocabulary
    words = embeddings.token_embedding(torch.where(slot < 0, layout.content, 0))
    if prompt is not None:
        vectors = prompt.vectors.flatten(0, -2).to(words.dtype)
        words = torch.where((slot >= 0)[:, None], F.embedding(slot.clamp(min=0), vectors), words)
        slot = torch.where(slot >= 0, slot % prompt.length, -1)
    return words + embeddings.position_embedding(layout.position), slot


def _kernel(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The attention kernel. On a CPU the fused one's backward is slow for rows this short."""
    if device.type == "cpu" and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


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


def word_vectors(backbone: Backbone, text: str) -> Tensor:
    """The embedding rows of the words of `text`, without special tokens: (n, d), a copy."""
    ids = backbone.tokenize([text])[0].ids[:-1]
    if backbone.start_token is not None:
        ids = ids[1:]
    weight: Tensor = backbone.model.text_model.embeddings.token_embedding.weight
    return weight.detach()[ids.to(weight.device)].clone()


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
