"""The text tower on embeddings against the plain transformers forward, and prompts by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from tests import ROOT
from tests.tiny import EOT, caption, tiny_clip
from trainables.data.batches import Tokens
from trainables.errors import ConfigError, DataError
from trainables.models import text_plan
from trainables.models.backbone import Backbone
from trainables.models.load import load_backbone
from trainables.models.text_plan import Place, Prompt, fit
from trainables.models.text_tower import embed_text, word_vectors

REAL = ROOT.parent / "shared" / "data" / "clip-flickr8k"
PLACES: tuple[Place, ...] = ("after_sos", "before_eot", "front", "after_name", "around_name")
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
        stop = max(1, len(words) - 1)  # the place of the last word
        first, second = {
            "front": (0, 0),
            "after_sos": (1, 1),
            "before_eot": (len(words), len(words)),
            "after_name": (stop, stop),
            "around_name": (1, stop),
        }[prompt.place]
        half = len(vectors) // 2
        row = [*words[:first], *vectors[:half], *words[first:second], *vectors[half:]]
        row += [*words[second:], eot]
        slots = [*range(first, first + half), *range(second + half, second + len(vectors))]
        end = len(row) - 1
        row += [torch.zeros_like(eot)] * (length - len(row))
        hidden = torch.stack(row)[None] + tower.embeddings.position_embedding.weight
        for number, block in enumerate(tower.encoder.layers):
            if prompt.deep is not None and 1 <= number <= len(prompt.deep):
                hidden = hidden.index_copy(
                    1, torch.tensor(slots, dtype=torch.int64), prompt.deep[number - 1][None]
                )
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


def test_an_empty_batch_is_refused(clip: Backbone) -> None:
    tokens, _ = clip.tokenize([])
    with pytest.raises(DataError, match="at least 1 caption, got 0"):
        embed_text(clip, tokens)


def test_a_caption_longer_than_the_tower_is_refused(clip: Backbone) -> None:
    with pytest.raises(DataError, match=r"at most 77 tokens, .* got 78"):
        embed_text(clip, ragged(clip, [5, 78]))


def test_wrong_number_of_prompts_is_refused(clip: Backbone) -> None:
    tokens, _ = clip.tokenize(["dog", "cat"])
    with pytest.raises(DataError, match="each of 2 captions, got 3"):
        embed_text(clip, tokens, Prompt(torch.zeros(3, 4, clip.text_width)))


def ragged(backbone: Backbone, lengths: Sequence[int], letters: int = 3, seed: int = 0) -> Tokens:
    """Captions of these lengths over so few words that many begin alike."""
    draw = torch.Generator().manual_seed(seed)
    ends = torch.tensor([backbone.start_token, backbone.end_token])
    words = [torch.randint(letters, (n - 2,), generator=draw) + 300 for n in lengths]
    rows = [torch.cat([ends[:1], ids, ends[1:]]) for ids in words]
    return Tokens(torch.cat(rows), torch.tensor([0, *map(len, rows)]).cumsum(0))


@pytest.fixture(scope="module")
def real_shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """The widths and heads of the real text towers, two blocks high; B/32's is B/16's too."""
    shapes = {"B/32, B/16": (512, 8), "L/14": (768, 12)}
    return {
        name: load_backbone(
            str(
                tiny_clip(
                    tmp_path_factory.mktemp("clip"),
                    text_width=width,
                    heads=heads,
                    vision_width=8 * heads,
                    joint=64,
                )
            )
        )
        for name, (width, heads) in shapes.items()
    }


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(["tiny", "B/32, B/16", "L/14"]),
    lengths=st.lists(st.integers(2, 77), min_size=1, max_size=6),
    n_ctx=st.integers(0, 32),
    place=st.sampled_from(PLACES),
    deep=st.booleans(),
    owners=st.sampled_from(["one", "own", "two"]),
    share=st.booleans(),
    few=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_batch_equals_formula_with_gradients(
    clip: Backbone,
    real_shapes: dict[str, Backbone],
    shape: str,
    lengths: list[int],
    n_ctx: int,
    place: Place,
    deep: bool,
    owners: str,
    share: bool,
    few: bool,
    seed: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_plan, "few_shapes", lambda _: few)
        equals_formula(
            clip if shape == "tiny" else real_shapes[shape],
            lengths,
            n_ctx,
            place,
            deep,
            owners,
            share,
            seed,
        )


def equals_formula(
    backbone: Backbone,
    lengths: list[int],
    n_ctx: int,
    place: Place,
    deep: bool,
    owners: str,
    share: bool,
    seed: int,
) -> None:
    """Outputs and gradients of one random batch against `by_hand`, caption by caption."""
    tokens = ragged(backbone, lengths, seed=seed)
    torch.manual_seed(seed)
    weights = torch.randn(len(tokens), backbone.embed_dim)
    if n_ctx == 0:
        ours = embed_text(backbone, tokens, share=share)
        assert_close(ours, plain(backbone, tokens))
        return
    of = {"one": None, "own": None, "two": torch.arange(len(tokens)) % 2}[owners]
    prompts = {"one": (), "own": (len(tokens),), "two": (2,)}[owners]
    vectors = torch.randn(*prompts, n_ctx, backbone.text_width).requires_grad_()
    layers = torch.randn(1, n_ctx, backbone.text_width).requires_grad_() if deep else None
    trained = [vectors] if layers is None else [vectors, layers]
    ours = embed_text(backbone, tokens, Prompt(vectors, place, layers, of), share)
    if owners == "two":
        reference = vectors[torch.arange(len(tokens)) % 2]
    else:
        reference = vectors.expand(len(tokens), -1, -1)
    rows = [
        by_hand(
            backbone,
            tokens.select(torch.tensor([n])),
            Prompt(reference[n], place, layers),
        )
        for n in range(len(tokens))
    ]
    theirs = torch.cat(rows)
    assert_close(ours.detach(), theirs.detach())
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), trained),
        torch.autograd.grad((theirs * weights).sum(), trained),
        strict=True,
    ):
        assert_close(a, b)


def test_a_node_goes_through_the_tower_once(clip: Backbone) -> None:
    texts = ["a red dog", "a red cat", "a red dog", "a blue dog"]
    tokens, _ = clip.tokenize(texts)
    seen: list[int] = []
    handle = clip.model.text_model.encoder.layers[0].mlp.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    prompt = Prompt(torch.randn(5, clip.text_width))
    shared = embed_text(clip, tokens, prompt)
    alone = embed_text(clip, tokens, prompt, share=False)
    handle.remove()
    # SOT and 5 vectors, a, red, dog, its EOT, cat, its EOT, blue, dog, its EOT; a copy is nothing.
    assert seen == [6 + 9, 4 * (6 + 4)]
    assert_close(shared, alone)


def test_members_of_a_vmap_equal_single_calls(clip: Backbone) -> None:
    tokens, _ = clip.tokenize(TEXTS)
    vectors = torch.randn(3, 4, clip.text_width)
    together = torch.vmap(lambda one: embed_text(clip, tokens, Prompt(one)))(vectors)
    for member, one in zip(together, vectors, strict=True):
        assert_close(member, embed_text(clip, tokens, Prompt(one)))


@torch.no_grad()
def test_many_captions_pass_in_parts(clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ragged(clip, [3, 9, 4, 9, 9, 5, 3, 77], letters=2)
    whole = embed_text(clip, tokens)
    monkeypatch.setattr(text_plan, "ROWS_A_PASS", 3)
    assert_close(embed_text(clip, tokens), whole)
