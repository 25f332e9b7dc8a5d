"""The towers as other runtimes run them: padded ids and pixels in, embeddings out, nothing shared.

Flows in: ids (B, N), padded behind their EOT, and normalised pixels (B, 3, R, R). Flows out: rows
of the joint space, (B, e), not normalised. What is packed and computed once while training is here
computed plainly, so that a program of it takes any batch. The model's own modules are called, so
injected modules (PEFT's) take part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.errors import ConfigError
from trainables.models.backbone import Backbone
from trainables.models.image_tower import states, upper
from trainables.models.text_plan import Prompt
from trainables.models.text_tower import through

# Of adapted images: the frozen tower's (B, e) and states before a block (B, S, w), to (B, e).
Change = Callable[[Tensor, Tensor | None], Tensor]


class PaddedText(nn.Module):
    """CLIP's text tower with a prompt inside. N is the tower's L positions without the prompt's P.

    >>> tokens = backbone.tokenize(["a dog", "a red ball"])[0]
    >>> tower = PaddedText(backbone)
    >>> tower(tokens.pad(backbone.pad_token, tower.room)).shape  # (B, e)
    torch.Size([2, 16])
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt: Prompt | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`change`: what an adapter makes of the tower's rows (B, e)."""
        super().__init__()
        self.change = change
        if backbone.kind != "clip":
            raise ConfigError(
                f"`{backbone.name}`: the text tower must be CLIP's, which reads a text up to its "
                f"end, got that of a {backbone.kind} model."
            )
        if prompt is not None and not prompt.shared:
            raise ConfigError(
                "a prompt for each class fits no text tower: it is for those classes."
            )
        self.text = backbone.model.text_model
        self.projection = backbone.model.text_projection
        self.heads: int = backbone.model.config.text_config.num_attention_heads
        self.end, self.positions = backbone.end_token, backbone.context_length
        self.room = self.positions - (prompt.length if prompt else 0)  # N
        self.place = prompt.place if prompt else "after_sos"
        vectors = torch.zeros(0, backbone.text_width) if prompt is None else prompt.vectors.detach()
        deep = vectors[None][:0] if prompt is None or prompt.deep is None else prompt.deep.detach()
        self.vectors = nn.Buffer(vectors.to(backbone.device))  # (P, d)
        self.deep = nn.Buffer(deep.to(backbone.device))  # (D, P, d)

    def forward(self, input_ids: Tensor) -> Tensor:
        lengths = (input_ids == self.end).int().argmax(1, keepdim=True) + 1  # (B, 1)
        hidden, vector = self._first(input_ids, lengths)  # (B, L, d), (B, L)
        for number, block in enumerate(self.text.encoder.layers):
            if 1 <= number <= len(self.deep):
                again = F.embedding(vector.clamp(min=0), self.deep[number - 1])
                hidden = torch.where((vector >= 0)[..., None], again, hidden)
            hidden = through(block, hidden, self._attend)
        ends = lengths - 1 + len(self.vectors)
        rows = hidden.gather(1, ends[..., None].expand(-1, -1, hidden.shape[-1]))[:, 0]
        embeds: Tensor = self.projection(self.text.final_layer_norm(rows))
        return embeds if self.change is None else self.change(embeds)

    def _first(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The states before block 0, and which of the prompt's vectors each is (-1: none)."""
        words = self.text.embeddings.token_embedding(ids)  # (B, N, d)
        at = torch.arange(self.positions, device=ids.device)  # (L,)
        count = len(self.vectors)
        vector = torch.full((ids.shape[0], self.positions), -1, device=ids.device)
        if count:
            places = self._places(lengths)  # (B, P)
            here = places[:, :, None] == at  # (B, P, L)
            vector = torch.where(here.any(1), here.int().argmax(1), -1)
        before = (vector >= 0).int().cumsum(1)  # vectors up to each position
        source = (at - before).clamp(0, ids.shape[1] - 1)
        hidden = words.gather(1, source[..., None].expand(-1, -1, words.shape[-1]))
        if count:
            own = F.embedding(vector.clamp(min=0), self.vectors.to(words.dtype))
            hidden = torch.where((vector >= 0)[..., None], own, hidden)
        return hidden + self.text.embeddings.position_embedding(at), vector

    def _places(self, lengths: Tensor) -> Tensor:
        """The positions of the prompt's vectors in texts of `lengths` (B, 1): (B, P)."""
        number = torch.arange(len(self.vectors), device=lengths.device)
        start = torch.full_like(lengths, 0 if self.place == "front" else 1)
        behind = torch.maximum(lengths - 2, start)  # the name
        if self.place == "before_eot":
            start = lengths - 1
        elif self.place == "after_name":
            start = behind
        elif self.place == "around_name":
            start = torch.where(number < len(self.vectors) // 2, start, behind)
        return start + number

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each position to itself and those before it: (B, L, d) each."""
        q, k, v = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (queries, keys, values)
        )  # (B, heads, L, d / heads)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Images(nn.Module):
    """An image tower, changed by an adapter; with `raw`, uint8 pixels are normalised inside."""

    def __init__(
        self,
        backbone: Backbone,
        change: Change | None = None,
        block: int | None = None,
        raw: bool = False,
    ) -> None:
        super().__init__()
        self.model = backbone.model  # its modules are this one's
        self._backbone, self.change, self.block, self.raw = [backbone], change, block, raw

    def forward(self, pixel_values: Tensor) -> Tensor:
        backbone = self._backbone[0]
        values = backbone.preprocess.normalise(pixel_values) if self.raw else pixel_values
        hidden = states(backbone, values, self.block or 0)  # (B, S, w)
        if self.block is not None and self.change is not None:
            return self.change(hidden[:, 0], hidden)
        embeds = upper(backbone, hidden, 0)
        return embeds if self.change is None else self.change(embeds, None)
