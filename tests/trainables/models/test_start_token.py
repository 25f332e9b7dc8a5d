"""What a language model is used to: a start token in front, and towers that no word passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from tests import ROOT
from tests.tiny import tiny_clip, tiny_lm
from tests.trainables.adapters.test_captioner import batch_of, captioner, plainly
from trainables.files import read_json
from trainables.models.backbone import Backbone
from trainables.models.language_model import load_language_model
from trainables.models.load import load_backbone

STORIES = ROOT.parent / "shared" / "data" / "stories260k"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
)


def with_start(folder: Path) -> Path:
    """A tiny model whose tokenizer begins every text with BOS."""
    tiny_lm(folder, "llama")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_clip(tmp_path_factory.mktemp("clip"))))


def test_a_start_token_stands_before_the_prefix(backbone: Backbone, tmp_path: Path) -> None:
    adapter = captioner(backbone, with_start(tmp_path / "lm"), max_tokens=4).eval()
    lm, batch = adapter.lm, batch_of(adapter.lm, ["a red dog!", "", "a cat"])
    assert lm.start_token == lm.tokenizer.bos_token_id
    prefix = adapter.prefix(batch.image_embeds, None)
    assert prefix.shape[1] == adapter.config.prefix_length + 1
    start = lm.embed(torch.tensor([lm.start_token]))
    torch.testing.assert_close(prefix[:, :1], start.expand(3, 1, -1))
    torch.testing.assert_close(adapter.loss(batch)[0], plainly(adapter, batch))
    assert adapter.room == lm.context_length - prefix.shape[1]
    assert len(adapter.captions(batch.image_embeds)) == 3
    # The tokens of a caption have none: it is not in front of them.
    assert lm.start_token not in lm.tokenize(["a cat"]).ids[:-1]


def test_the_export_says_so(backbone: Backbone, tmp_path: Path) -> None:
    lms = with_start(tmp_path / "with"), tiny_lm(tmp_path / "without")
    for lm, start in zip(lms, (256, None), strict=True):
        captioner(backbone, lm, lm_mode="frozen").export(tmp_path)
        assert read_json(tmp_path / "mapper.json")["start_token"] == start


def test_a_model_that_has_one_and_does_not_use_it_gets_none(tmp_path: Path) -> None:
    lm = load_language_model(str(tiny_lm(tmp_path)))
    assert lm.tokenizer.bos_token_id is not None
    assert lm.start_token is None
    prefix = torch.zeros(1, 2, lm.width)
    assert lm.started(prefix) is prefix


@torch.no_grad()
def test_the_real_stories_are_known_with_their_start() -> None:
    if not STORIES.is_dir():
        pytest.skip("the real language model is not here (../shared/data/stories260k)")
    lm = load_language_model(str(STORIES))
    assert lm.start_token == 1
    ids = lm.tokenize([STORY]).ids[:-1]
    empty = torch.zeros(1, 0, lm.width)
    vectors = torch.cat([lm.started(empty), lm.embed(ids[None, :-1])], dim=1)
    losses = F.cross_entropy(lm.logits(vectors, torch.arange(len(ids))), ids, reduction="none")
    assert losses.mean().item() == pytest.approx(0.180, abs=0.001)  # its own, by transformers


def test_low_rank_updates_reach_no_tower_that_words_do_not_pass(tmp_path: Path) -> None:
    tiny_lm(tmp_path)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text = size | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    seen = size | {"num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    config = Gemma3Config(
        text_config=text | {"vocab_size": 300, "max_position_embeddings": 48},
        vision_config=seen,
        mm_tokens_per_image=4,
        image_token_index=299,
    )
    with torch.random.fork_rng():
        Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    lm = load_language_model(str(tmp_path))
    assert lm.context_length == 48
    assert any("vision_tower" in name for name, _ in lm.model.named_modules())
    tuned = lm.with_lora(2, 4.0, 0.0)
    trained = [name for name, p in tuned.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("language_model" in name for name in trained)
