"""From one image embedding to the prefix that a language model reads; from frames to one embedding.

Flows in: embeddings of CLIP's joint space, (B, e) or (B, F, e). Flows out: prefix vectors (B, k, d)
of a language model of width d, or one embedding (B, e) of a clip.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import check


class MlpMapper(nn.Sequential):
    """Linear, tanh, linear: ClipCap's mapper for a language model that is tuned with it (Mokady et
    al. 2021, arXiv:2111.09734). (B, e) to (B, k, d)."""

    def __init__(self, embed_dim: int, width: int, length: int) -> None:
        middle = width * length // 2
        super().__init__(
            nn.Linear(embed_dim, middle),
            nn.Tanh(),
            nn.Linear(middle, width * length),
            nn.Unflatten(1, (length, width)),
        )


class TransformerMapper(nn.Module):
    """ClipCap's mapper for a frozen language model. The embedding becomes `clip_length` tokens,
    `length` learned tokens stand behind them, and the outputs of `layers` pre-norm blocks at the
    learned tokens are the prefix. (B, e) to (B, k, d)."""

    def __init__(
        self, embed_dim: int, width: int, length: int, clip_length: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        check(width % heads == 0, "adapter.heads", f"a divisor of the width {width}", heads)
        self.enter = nn.Linear(embed_dim, clip_length * width)
        self.constant = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))

    def forward(self, embeds: Tensor) -> Tensor:
        length, width = self.constant.shape
        seen = self.enter(embeds).unflatten(1, (-1, width))  # (B, c, d)
        tokens = torch.cat([seen, self.constant.expand(len(embeds), -1, -1)], dim=1)
        prefix: Tensor = self.blocks(tokens)[:, -length:]
        return prefix


class _Block(nn.Module):
    """Attention among all tokens without biases of q, k and v; an MLP of ratio 2 with ReLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


class TemporalPool(nn.Module):
    """The frames of a clip, pooled by attention that knows when each was: (B, F, e) to (B, e).

    Each of 8 learned queries weighs the frames by their difference from the mean and by their place
    in time, a share of the clip from 0 to 1, so any number of frames will do. The sum of what the
    queries read is added to the mean, through a matrix that starts at 0: training starts at the
    mean.
    """

    WAVES = 4  # sines and cosines of 1/2 to 4 periods a clip

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        heads = math.gcd(embed_dim, 8)
        self.query = nn.Parameter(torch.randn(heads, embed_dim // heads))
        self.time = nn.Linear(2 * self.WAVES, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out = nn.Linear(embed_dim, embed_dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, frames: Tensor) -> Tensor:
        heads, width = self.query.shape
        mean = frames.mean(1, keepdim=True)
        changes = self.norm(frames - mean)  # which are far smaller than what all frames share
        tokens = changes + self.time(self._waves(frames.shape[1]).to(frames))
        keys = self.key(tokens).unflatten(2, (heads, width))
        values = self.value(tokens).unflatten(2, (heads, width))
        weights = (torch.einsum("bfhw,hw->bhf", keys, self.query) / width**0.5).softmax(-1)
        read = torch.einsum("bhf,bfhw->bhw", weights, values).flatten(1)
        pooled: Tensor = mean[:, 0] + self.out(read)
        return pooled

    def _waves(self, frames: int) -> Tensor:
        """Sines and cosines of the frames' places in time: (F, 8)."""
        time = (torch.arange(frames) + 0.5) / frames
        angles = torch.pi * time[:, None] * 2.0 ** torch.arange(self.WAVES)
        return torch.cat([angles.sin(), angles.cos()], dim=1)
