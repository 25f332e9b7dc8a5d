"""The text tower on embeddings against the plain transformers forward, and prompts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from tests.tiny import EOT, caption, tiny_clip
from trainables.backbone import Backbone, load_backbone
from trainables.data import Tokens
from trainables.errors import ConfigError
from trainables.text_tower import Place, Prompt, embed_text, fit, word_vectors

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "clip-flickr8k"
PLACES: tuple[Place, ...] = ("after_sos", "before_eot", "front")
TEXTS = [caption(i, i % 2) for i in range(9)] + [
    "",
    "dog",
    "a dog " * 60,
    f"a {EOT} dog",
    "ünï 犬 🐕",
]
SHAPES: dict[str, dict[str, Any]] = {  # the proportions of the real ones
    "B/32": {"text_width": 32, "heads": 4, "vision_width": 48, "joint": 32, "patch": 16},
    "B/16": {"text_width": 32, "heads": 4, "vision_width": 48, "joint": 32, "patch": 8},
    "L/14": {"text_width": 48, "heads": 6, "vision_width": 60, "joint": 48, "layers": 4},
    "legacy EOS": {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1},  # OpenAI's configs
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_clip(tmp_path_factory.mktemp("clip"), layers=3)))


def plain(backbone: Backbone, tokens: Tokens) -> Tensor:
    """Transformers' own forward, padded to L as in Hugging Face's examples."""
    ids = tokens.pad(backbone.pad_token, backbone.context_length).long()
    return backbone.model.get_text_features(input_ids=ids).pooler_output


def by_hand(backbone: Backbone, tokens: Tokens, prompt: Prompt) -> Tensor:
    """CLIP with a prompt, the slow and plain way: one caption at a time, embeddings padded to L."""
    tower, rows = backbone.model.text_model, []
    length = backbone.context_length
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    vectors = list(prompt.vectors)
    for n in range(len(tokens)):
        ids = tokens.ids[tokens.offsets[n] : tokens.offsets[n + 1]]
        words = list(tower.embeddings.token_embedding(ids))
        words, eot = words[: length - len(vectors) - 1], words[-1]
        words = words if len(words) < len(ids) else words[:-1]
        at = {"front": 0, "after_sos": 1, "before_eot": len(words)}[prompt.place]
        row = [*words[:at], *vectors, *words[at:], eot]
        end = len(row) - 1
        row += [torch.zeros_like(eot)] * (length - len(row))
        hidden = torch.stack(row)[None] + tower.embeddings.position_embedding.weight
        for number, block in enumerate(tower.encoder.layers):
            if prompt.deep is not None and 1 <= number <= len(prompt.deep):
                deep = prompt.deep[number - 1]
                hidden = torch.cat([hidden[:, :at], deep[None], hidden[:, at + len(deep) :]], 1)
            hidden = block(hidden, mask)
        rows.append(backbone.model.text_projection(tower.final_layer_norm(hidden[0, end])))
    return torch.stack(rows)


def assert_close(ours: Tensor, reference: Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_clip_equals_plain_forward(tmp_path: Path, shape: str) -> None:
    backbone = load_backbone(str(tiny_clip(tmp_path, **SHAPES[shape])))
    tokens, cut = backbone.tokenize(TEXTS)
    assert cut == 1
    assert_close(embed_text(backbone, tokens), plain(backbone, tokens))


def test_real_clip_equals_plain_forward() -> None:
    if not REAL.is_dir():
        pytest.skip("the small real CLIP is not here (../shared/data/clip-flickr8k)")
    backbone = load_backbone(str(REAL))
    tokens, _ = backbone.tokenize(TEXTS)
    assert_close(embed_text(backbone, tokens), plain(backbone, tokens))


def test_siglip_equals_plain_forward(siglip: Backbone) -> None:
    tokens, cut = siglip.tokenize(TEXTS)
    assert cut == 1
    assert_close(embed_text(siglip, tokens), plain(siglip, tokens))


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("place", PLACES)
def test_prompt_equals_formula_with_gradients(clip: Backbone, place: Place, layers: int) -> None:
    torch.manual_seed(0)
    tokens, _ = clip.tokenize(TEXTS)
    vectors = torch.randn(5, clip.text_width).requires_grad_()
    deep = torch.randn(layers, 5, clip.text_width).requires_grad_() if layers else None
    trained = [vectors] if deep is None else [vectors, deep]
    weights = torch.randn(len(tokens), clip.embed_dim)
    prompt = Prompt(vectors, place, deep)
    outputs, gradients = [], []
    for function in (embed_text, by_hand):
        output = function(clip, tokens, prompt)
        outputs.append(output.detach())
        gradients.append(torch.autograd.grad((output * weights).sum(), trained))
    assert_close(*outputs)
    for ours, reference in zip(*gradients, strict=True):
        assert reference.abs().max() > 0
        assert_close(ours, reference)


def test_each_caption_can_have_its_own_prompt(clip: Backbone) -> None:
    tokens, _ = clip.tokenize(TEXTS[:3])
    vectors = torch.randn(3, 4, clip.text_width)
    together = embed_text(clip, tokens, Prompt(vectors))
    for n in range(3):
        alone = embed_text(clip, tokens.select(torch.tensor([n])), Prompt(vectors[n]))
        assert_close(together[n : n + 1], alone)


def test_words_as_prompt_equal_the_words(clip: Backbone) -> None:
    rest, _ = clip.tokenize(["red dog"])
    whole, _ = clip.tokenize(["a photo of a red dog"])
    vectors = word_vectors(clip, "a photo of a")
    assert vectors.shape == (4, clip.text_width)
    assert_close(embed_text(clip, rest, Prompt(vectors)), embed_text(clip, whole))


def test_siglip_words_as_prompt_equal_the_words(siglip: Backbone) -> None:
    rest, _ = siglip.tokenize(["red dog"])
    whole, _ = siglip.tokenize(["a photo of a red dog"])
    vectors = word_vectors(siglip, "a photo of a")
    for place in ("front", "after_sos"):
        assert_close(embed_text(siglip, rest, Prompt(vectors, place)), embed_text(siglip, whole))


def test_gradients_of_injected_weights_equal_plain_forward(clip: Backbone) -> None:
    torch.manual_seed(0)
    tokens, _ = clip.tokenize(TEXTS)
    before = {name: (w.data_ptr(), w.clone()) for name, w in clip.model.named_parameters()}
    types = {name: type(module) for name, module in clip.model.named_modules()}
    copy = clip.isolated()
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, copy.model.text_model)
    trained = [p for p in copy.model.parameters() if p.requires_grad]
    assert trained
    weights = torch.randn(len(tokens), clip.embed_dim)
    ours = embed_text(copy, tokens)
    reference = plain(copy, tokens)
    assert_close(ours.detach(), reference.detach())
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), trained),
        torch.autograd.grad((reference * weights).sum(), trained),
        strict=True,
    ):
        assert_close(a, b)
    # The shared backbone knows nothing of it.
    assert (plain(clip, tokens) - reference).abs().max() > 1e-4
    assert {name: type(module) for name, module in clip.model.named_modules()} == types
    for name, parameter in clip.model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert not parameter.requires_grad


@pytest.mark.parametrize("added", [0, 1, 16, 74])
def test_fit_keeps_eot_and_counts(clip: Backbone, added: int) -> None:
    tokens, _ = clip.tokenize(["dog " * n for n in (0, 1, 50, 70, 75, 76, 200)])
    short, cut = fit(clip, tokens, added)
    limit = 77 - added
    assert cut == int((tokens.lengths > limit).sum())
    assert torch.equal(short.lengths, tokens.lengths.clamp(max=limit))
    assert (short.ids[short.offsets[1:] - 1] == clip.end_token).all()
    assert (short.ids[short.offsets[:-1]] == clip.start_token).all()


def test_prompt_without_room_for_a_word_is_refused(clip: Backbone) -> None:
    tokens, _ = clip.tokenize(["dog"])
    assert embed_text(clip, tokens, Prompt(torch.zeros(74, clip.text_width))).isfinite().all()
    with pytest.raises(ConfigError, match=r"75 vectors .* 77 positions.* at most 74"):
        embed_text(clip, tokens, Prompt(torch.zeros(75, clip.text_width)))


def test_too_deep_a_prompt_is_refused(clip: Backbone) -> None:
    tokens, _ = clip.tokenize(["dog"])
    vectors = torch.zeros(2, clip.text_width)
    with pytest.raises(ConfigError, match="fewer than 3 layers"):
        embed_text(clip, tokens, Prompt(vectors, deep=vectors.expand(3, -1, -1)))


def test_no_captions_are_no_rows(clip: Backbone) -> None:
    tokens, _ = clip.tokenize([])
    assert embed_text(clip, tokens).shape == (0, clip.embed_dim)
