"""Dual encoders of any two towers: features as transformers computes them, heads, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTextConfig,
    CLIPVisionConfig,
    RobertaConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from tests.tiny import SOT, WORDS, caption, tiny_tokenizer
from trainables.adapters.registry import build, make_config
from trainables.errors import ConfigError
from trainables.files import write_json
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images
from trainables.models.load import load_backbone
from trainables.models.text_plan import Prompt
from trainables.models.text_tower import embed_text, word_vectors
from trainables.models.vocabulary import Vocabulary

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 4}
SEEN = {"image_size": 32, "patch_size": 8}
TEXTS = [*(caption(i, i % 2) for i in range(5)), "", "dog", "a red dog " * 30]


def dual(folder: Path, text: str) -> Path:
    """A ViT or CLIP's image tower beside a text tower of that kind."""
    folder.mkdir(exist_ok=True)
    positions = {"max_position_embeddings": 40}
    vision: Any = ViTConfig(**SIZE, **SEEN)
    if text == "clip":
        words: Any = tiny_tokenizer()
        marks = {"bos_token_id": words.convert_tokens_to_ids(SOT)}
        marks |= {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
        config: Any = CLIPTextConfig(**SIZE, **positions, **marks, vocab_size=len(words))
        words.model_max_length = 40
        vision = CLIPVisionConfig(**SIZE, **SEEN)
    else:
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocab = {word: n for n, word in enumerate([*marks, *dict.fromkeys(WORDS), "##s"])}
        words = BertTokenizer(vocab=vocab, model_max_length=40)
        kind = BertConfig if text == "bert" else RobertaConfig
        config = kind(**SIZE, **positions, vocab_size=len(vocab), pad_token_id=0)
    words.save_pretrained(folder)
    both = VisionTextDualEncoderConfig.from_vision_text_configs(vision, config, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTextDualEncoderModel(both)
        with torch.no_grad():  # its initialisation is so small that all captions look alike
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    how = {"image_processor_type": "ViTImageProcessor", "size": square, "resample": 2}
    how |= {"do_resize": True, "do_rescale": True, "do_normalize": True}
    write_json(folder / "preprocessor_config.json", how)
    return folder


@pytest.fixture(scope="module", params=["bert", "roberta", "clip"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(dual(tmp_path_factory.mktemp("dual"), request.param)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(dual(tmp_path_factory.mktemp("dual"), "bert")))


@torch.no_grad()
def test_features_are_those_of_transformers(backbone: Backbone) -> None:
    assert backbone.kind == "dual"
    assert (backbone.embed_dim, backbone.text_width, backbone.bias) == (16, 32, 0)
    assert backbone.scale == pytest.approx(backbone.model.logit_scale.exp().item())
    pixels = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    reference = backbone.model.get_image_features(pixel_values=pixels / 127.5 - 1).pooler_output
    torch.testing.assert_close(embed_images(backbone, pixels), reference, rtol=1e-4, atol=1e-5)
    own = {"padding": True, "truncation": True, "max_length": backbone.context_length}
    given = backbone.tokenizer(TEXTS, **own, return_tensors="pt")
    tokens, cut = backbone.tokenize(TEXTS)
    assert cut == 1
    assert tokens.ids.tolist() == given["input_ids"][given["attention_mask"].bool()].tolist()
    ids = {name: given[name] for name in ("input_ids", "attention_mask")}
    texts = backbone.model.get_text_features(**ids).pooler_output
    torch.testing.assert_close(embed_text(backbone, tokens), texts, rtol=1e-4, atol=1e-5)
    assert (texts[0] - texts[1]).abs().max() > 1e-3


@pytest.mark.parametrize("place", ["front", "after_sos"])
def test_words_as_a_prompt_equal_the_words(bert: Backbone, place: Any) -> None:
    rest, whole = (bert.tokenize([text])[0] for text in ("red dog", "a photo of a red dog"))
    vectors = word_vectors(bert, "a photo of a").requires_grad_()
    assert vectors.shape == (4, 32)
    ours = embed_text(bert, rest, Prompt(vectors, "after_sos"))
    torch.testing.assert_close(ours, embed_text(bert, whole), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(embed_text(bert, rest, Prompt(vectors, place)).sum(), vectors)
    assert gradient.abs().max() > 0


def test_each_caption_can_have_its_own_prompt(bert: Backbone) -> None:
    tokens, _ = bert.tokenize(TEXTS)
    vectors = torch.randn(len(TEXTS), 3, 32)
    together = embed_text(bert, tokens, Prompt(vectors, "before_eot"))
    for n in range(len(TEXTS)):
        one = tokens.select(torch.tensor([n]))
        alone = embed_text(bert, one, Prompt(vectors[n], "before_eot"))
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_text_tower_that_takes_ids_alone_takes_no_prompt(tmp_path: Path) -> None:
    backbone = load_backbone(str(dual(tmp_path, "clip")))
    tokens, _ = backbone.tokenize(["dog"])
    with pytest.raises(ConfigError, match="prompts need a text tower that takes vectors"):
        embed_text(backbone, tokens, Prompt(torch.zeros(2, 32)))


@pytest.mark.parametrize("name", ["projection", "soft_prompt", "coop", "kgcoop", "tip_adapter"])
def test_heads_and_prompts_are_built(bert: Backbone, name: str) -> None:
    adapter = build(make_config(name), bert)
    texts = adapter.embed_text(bert.tokenize(["a red dog"])[0])
    assert texts.shape == (1, 16)


@pytest.mark.parametrize("name", ["lora", "maple", "promptsrc"])
def test_what_works_inside_a_tower_is_refused(bert: Backbone, name: str) -> None:
    with pytest.raises(ConfigError, match="CLIP's or SigLIP's own towers, got VisionTextDual"):
        build(make_config(name), bert)


def test_its_words_can_be_read(bert: Backbone) -> None:
    words = Vocabulary.of(bert)
    tokens, _ = words.nearest(word_vectors(bert, "dog"), 1, "euclidean")
    assert str(words.word(int(tokens[0, 0]))) == "dog"
    assert not words.word(bert.tokenizer.convert_tokens_to_ids("##s")).whole
