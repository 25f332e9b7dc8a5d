"""Language models: what is loaded, what is refused and how, and captions as their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.tiny import tiny_lm
from trainables.errors import CliptuneError, ConfigError, DataError
from trainables.files import read_json, write_json
from trainables.models.backbone import Backbone
from trainables.models.language_model import LanguageModel, language_model, load_language_model

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SCALED: dict[str, tuple[Any, Any]] = {  # models whose logits are more than a matrix product
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZE, **HEADS, head_dim=8, vocab_size=300)),
    "granite": (
        GraniteForCausalLM,
        GraniteConfig(
            **SIZE, **HEADS, vocab_size=300, logits_scaling=8.0, embedding_multiplier=3.0
        ),
    ),
    "cohere": (CohereForCausalLM, CohereConfig(**SIZE, **HEADS, vocab_size=300)),
}


def write_scaled(folder: Path, kind: str) -> Path:
    """A random model of that kind behind the tokenizer of `tiny_lm`."""
    tiny_lm(folder)
    make, config = SCALED[kind]
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(config)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(40)  # its logits meet their cap
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return load_language_model(str(folder))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_folder_is_loaded_frozen_and_described(kind: str, tmp_path: Path) -> None:
    lm = load_language_model(str(tiny_lm(tmp_path, kind, positions=48)))
    assert (lm.width, lm.context_length, lm.end_token, lm.plain) == (32, 48, 256, True)
    assert lm.name == str(tmp_path)
    assert lm.revision is None
    assert lm.identity == {"name": str(tmp_path), "revision": None, "fingerprint": lm.fingerprint}
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_the_fingerprint_is_of_weights_and_tokenizer(tmp_path: Path) -> None:
    folders = [tiny_lm(tmp_path / str(n), seed=n // 2) for n in range(4)]
    first, same, other, changed = (load_language_model(str(f)).fingerprint for f in folders)
    assert first == same != other == changed
    about = read_json(folders[3] / "tokenizer_config.json") | {"add_prefix_space": True}
    write_json(folders[3] / "tokenizer_config.json", about)
    assert load_language_model(str(folders[3])).fingerprint != changed


def test_tiny_is_there_speaks_and_has_room_for_the_paper_s_longest_prefix() -> None:
    lm = load_language_model("tiny")
    assert lm.name == "tiny"
    assert lm.width % 8 == 0  # ClipCap's heads
    assert lm.context_length > 42
    ids = lm.tokenize(["a red circle."]).ids
    assert lm.text(ids.tolist()) == "a red circle."
    with torch.no_grad():
        loss, backwards = (lm.model(x[None], labels=x[None]).loss for x in (ids, ids.flip(0)))
    assert loss < backwards - 1  # it has learned to speak


def test_a_folder_called_tiny_does_not_stand_in_for_the_tiny_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainables.adapters.prefix_captioner import PrefixCaptionerConfig

    tiny_lm(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert PrefixCaptionerConfig().lm == "tiny"
    assert PrefixCaptionerConfig(lm="./tiny").lm == str(tmp_path / "tiny")


def test_it_is_loaded_once_for_all_trials_of_a_process(folder: Path, backbone: Backbone) -> None:
    assert language_model(backbone, str(folder)) is language_model(backbone, str(folder))


def test_a_hub_id_needs_its_commit() -> None:
    for revision in (None, "main"):
        with pytest.raises(ConfigError, match=r"`owner/model` .* needs `adapter.lm_revision` with"):
            load_language_model("owner/model", revision)


def test_a_folder_takes_no_commit(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"`adapter.lm_revision` is for Hub ids"):
        load_language_model(str(folder), "0" * 40)


def refused(folder: Path, kind: type[CliptuneError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        load_language_model(str(folder))


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = tiny_lm(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, ConfigError, r"pytorch_model.bin` is refused: such a file can run code")


def test_code_beside_a_model_is_not_run_and_not_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_lm(tmp_path)
    about = read_json(folder / "config.json") | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"},
    }
    write_json(folder / "config.json", about)
    (folder / "own.py").write_text("raise SystemExit('it ran')")

    def asked(*words: object) -> str:
        pytest.fail("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)
    refused(folder, DataError, r"could not be loaded")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    refused(tmp_path, ConfigError, r"is not a model in Hugging Face layout: it has no config.json")


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    folder = tiny_lm(tmp_path)
    (folder / "tokenizer.json").unlink()
    refused(folder, ConfigError, "it has no vocab.json")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = tiny_lm(tmp_path)
    about = read_json(folder / "tokenizer_config.json")
    del about["eos_token"]
    write_json(folder / "tokenizer_config.json", about)
    refused(folder, ConfigError, r"its tokenizer must have an end token .* it has none")


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    folder = tiny_lm(tmp_path)
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    refused(folder, ConfigError, "must fit the model's 257 token embeddings, got 258 tokens")


def test_a_model_without_a_matrix_of_word_vectors_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2LMHeadModel

    monkeypatch.setattr(GPT2LMHeadModel, "get_input_embeddings", lambda self: torch.nn.Identity())
    refused(folder, ConfigError, "a GPT2LMHeadModel has no matrix of input or output embeddings")


@pytest.mark.parametrize("kind", ["gpt2", "llama", *SCALED])
def test_logits_are_the_models_own(kind: str, tmp_path: Path) -> None:
    path = write_scaled(tmp_path, kind) if kind in SCALED else tiny_lm(tmp_path, kind)
    lm = load_language_model(str(path))
    assert lm.plain == (kind not in SCALED)
    ids = torch.tensor([[7, 60, 256, 3], [9, 9, 100, 0]])
    places = torch.tensor([0, 2, 3, 5])
    with torch.no_grad():
        expected = lm.model(input_ids=ids).logits
        if kind in ("gpt2", "llama"):
            vectors = lm.embed(ids)
        else:  # some multiply what they are given by a number, words and vectors alike
            vectors = lm.model.get_input_embeddings()(ids)
        found = lm.logits(vectors, places)
    assert found.shape == (4, expected.shape[-1])
    rows = [expected[0, 0], expected[0, 2], expected[0, 3], expected[1, 1]]
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-5, atol=1e-5)


TEXTS = [
    "a red dog",
    "",
    "une fête à la plage, été",
    "日本語の説明 и по-русски",
    "a 👩‍👩‍👧 family 🏳️‍🌈",
    "<|endoftext|> is a token's name",
    "two  spaces\nand a line",
]


def test_captions_come_back_as_they_were_and_each_has_its_end(lm: LanguageModel) -> None:
    tokens = lm.tokenize(TEXTS)
    rows = [tokens.select(torch.tensor([n])).ids.tolist() for n in range(len(TEXTS))]
    for text, row in zip(TEXTS, rows, strict=True):
        assert row[-1] == lm.end_token
        assert row.count(lm.end_token) == 1  # its name in a text is text
        assert len(row) == len(text.encode()) + 1  # this tokenizer's tokens are bytes
        assert lm.text(row) == " ".join(text.split())


def test_many_captions_are_those_of_each(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lm.tokenize(TEXTS)
    monkeypatch.setattr("trainables.models.language_model.CHUNK", 3)
    parts = lm.tokenize(TEXTS)
    assert torch.equal(whole.ids, parts.ids)
    assert torch.equal(whole.offsets, parts.offsets)
    assert len(lm.tokenize([])) == 0


def test_a_long_caption_loses_its_middle_words_and_keeps_its_end(lm: LanguageModel) -> None:
    tokens = lm.tokenize(["a" * 30, "bb", "c" * 9]).cut(10)
    assert tokens.lengths.tolist() == [10, 3, 10]
    a, b, c = (ord(x) for x in "abc")
    by_letter = {x: lm.tokenize([chr(x)]).ids[0].item() for x in (a, b, c)}
    expected = [by_letter[a]] * 9 + [256] + [by_letter[b]] * 2 + [256] + [by_letter[c]] * 9 + [256]
    assert tokens.ids.tolist() == expected


def test_what_a_torn_emoji_decodes_to_is_text(lm: LanguageModel) -> None:
    torn = lm.tokenize(["a 🐕"]).ids[:-2].tolist()  # without the last byte and the end
    assert lm.text(torn).startswith("a ")


def test_the_full_stop_is_the_one_at_the_end_of_a_sentence(
    tmp_path: Path, lm: LanguageModel
) -> None:
    assert lm.full_stop == lm.tokenize(["a dog."]).ids[-2]
    # SentencePiece has another token for a full stop that stands alone.
    letters = {c: n for n, c in enumerate(["▁", ".", "▁.", "a", "</s>"])}
    words = Tokenizer(BPE(vocab=letters, merges=[("▁", ".")]))
    words.pre_tokenizer, words.decoder = Metaspace(), MetaspaceDecoder()
    folder = tiny_lm(tmp_path, "llama")
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
    other = load_language_model(str(folder))
    assert other.full_stop == other.tokenize(["a a."]).ids[-2] == letters["."]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_shared_weights_are_the_same_memory_and_copied_ones_are_not(
    kind: str, tmp_path: Path
) -> None:
    lm = load_language_model(str(tiny_lm(tmp_path, kind)))
    shared, copied = lm.shared(), lm.copied()
    places = {p.data_ptr() for p in lm.model.parameters()}
    assert {p.data_ptr() for p in shared.model.parameters()} == places
    assert not places & {p.data_ptr() for p in copied.model.parameters()}
    assert all(p.requires_grad for p in copied.model.parameters())
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert {id(m) for m in lm.model.modules()}.isdisjoint({id(m) for m in shared.model.modules()})
    on_disk = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(p, on_disk[n]) for n, p in copied.model.named_parameters())
