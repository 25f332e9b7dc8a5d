"""`soft_prompt`: what its vectors start from and where its limits are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.contract import make, trained
from trainables.data.batches import Batch
from trainables.errors import ConfigError
from trainables.models.backbone import Backbone
from trainables.models.text_tower import embed_text


def test_prompt_from_words(backbone: Backbone) -> None:
    table = backbone.model.text_model.embeddings.token_embedding.weight
    tokens, _ = backbone.tokenize(["a photo of"])
    words = table[tokens.ids[1:-1]]  # (3, d)
    short = make("soft_prompt", backbone, **{"adapter.init": "a photo of", "adapter.n_ctx": 2})
    long = make("soft_prompt", backbone, **{"adapter.init": "a photo of", "adapter.n_ctx": 5})
    assert torch.equal(short.vectors, words[:2])  # type: ignore[arg-type]
    vectors = long.vectors
    assert isinstance(vectors, Tensor)
    assert torch.equal(vectors[:3], words)
    assert 0 < vectors[3:].abs().max() < 0.2


def test_a_prompt_of_real_words_says_them(backbone: Backbone) -> None:
    values = {"adapter.init": "a photo of", "adapter.n_ctx": 3}
    prompted = make("soft_prompt", backbone, **values)
    captions, _ = backbone.tokenize(["red dog", "boat"])
    written, _ = backbone.tokenize(["a photo of red dog", "a photo of boat"])
    torch.testing.assert_close(prompted.embed_text(captions), embed_text(backbone, written))


def test_a_prompt_longer_than_the_context_is_refused(backbone: Backbone, batch: Batch) -> None:
    with pytest.raises(ConfigError, match="a prompt of 75 vectors leaves no room"):
        make("soft_prompt", backbone, **{"adapter.n_ctx": 75}).embed_text(batch.tokens)


def test_parameters_of_a_prompt_as_published(backbone: Backbone) -> None:
    adapter = make("soft_prompt", backbone, **{"adapter.n_ctx": 16})
    assert sum(p.numel() for p in trained(adapter).values()) == 16 * 32  # CoOp: 16 * 512 = 8,192
