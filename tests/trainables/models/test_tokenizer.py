"""SigLIP's captions as ids: those of transformers' own class, for every kind of folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models, processors, trainers
from transformers import (
    AutoTokenizer,
    Siglip2Tokenizer,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
)

from tests.tiny import WORDS, tiny_lm, tiny_siglip
from trainables.errors import ConfigError, DataError
from trainables.files import read_json, write_json
from trainables.models.backbone import Backbone
from trainables.models.language_model import load_language_model
from trainables.models.load import load_backbone
from trainables.models.text_tower import embed_text
from trainables.models.tokenizer import check_fits

CASES = [
    *("a red dog", "A RED Dog", "ÉTÉ, Straße", "", " ", "dog"),
    *("a red dog.", "It's a dog's ball!", "(a) red-dog; 2,000 balls?", "{a} red_dog"),
    *("  a   red  dog ", "a\tred\ndog", "a\u00a0red\u3000dog", "▁a red dog"),
    *("dog " * 62, "dog " * 63, "dog " * 64, "dog " * 70),
    *("a photo of a cat near the sea, on a table, under a bridge", "犬 🐕"),
]
SENTENCES = ["a red dog", "a photo of a cat near the sea", "two balls on a table", *WORDS]


def spiece() -> bytes:
    """A SentencePiece vocabulary with SigLIP's special tokens."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=file,
        vocab_size=80,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    return file.getvalue()


def siglip1(folder: Path) -> Path:
    """With `spiece.model` alone, as the first SigLIP was published."""
    bare(folder)
    (folder / "spiece.model").write_bytes(spiece())
    return folder


def siglip1_saved(folder: Path) -> Path:
    """As transformers 5 saves model and processor."""
    siglip1(folder)
    model = SiglipModel.from_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    tokenizer = SiglipTokenizer.from_pretrained(folder)
    model.save_pretrained(folder)
    SiglipProcessor(processor, tokenizer).save_pretrained(folder)
    assert not (folder / "tokenizer.json").exists()
    return folder


def siglip2(folder: Path, **about: Any) -> Path:
    """With a `tokenizer.json` that keeps capitals, whose class does not."""
    bare(folder)
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaced = [word.replace(" ", "▁") for text in SENTENCES for word in (text, text.title())]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    size = 5 + 256 + 60
    words.train_from_iterator(
        spaced, trainers.BpeTrainer(vocab_size=size, special_tokens=marks + letters)
    )
    words.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    words.save(str(folder / "tokenizer.json"))
    marks_by_name = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "Siglip2Tokenizer", "model_max_length": 64, **marks_by_name}
    write_json(folder / "tokenizer_config.json", config | {"bos_token": "<bos>"} | about)
    return folder


def siglip2_right(folder: Path) -> Path:
    return siglip2(folder, padding_side="right")


def bare(folder: Path) -> None:
    """A SigLIP of 400 tokens without a tokenizer."""
    tiny_siglip(folder, vocab_size=400)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module", params=[siglip1, siglip1_saved, siglip2, siglip2_right])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param(tmp_path_factory.mktemp(request.param.__name__))
    return made


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(folder))


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    """transformers' class, padding and cutting as SigLIP's processor asks it to."""
    loaded = AutoTokenizer.from_pretrained(folder)
    assert isinstance(loaded, (SiglipTokenizer, Siglip2Tokenizer))
    return loaded


@pytest.mark.parametrize("text", CASES)
def test_ids_equal_the_own_class(backbone: Backbone, own: Any, text: str) -> None:
    tokens, cut = backbone.tokenize([text])
    assert tokens.ids.tolist() == own(text, truncation=True, max_length=64)["input_ids"]
    assert cut == (len(own(text)["input_ids"]) > 64)
    assert tokens.ids[-1] == backbone.end_token


def test_embeddings_equal_those_of_the_padded_ids(backbone: Backbone, own: Any) -> None:
    how = {"padding": "max_length", "max_length": 64, "truncation": True, "return_tensors": "pt"}
    ids = own(CASES, **how)["input_ids"]
    reference = backbone.model.get_text_features(input_ids=ids).pooler_output
    ours = embed_text(backbone, backbone.tokenize(CASES)[0])
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_capitals_and_punctuation_are_what_the_class_makes_of_them(backbone: Backbone) -> None:
    capitals, small = (backbone.tokenize([text])[0].ids.tolist() for text in CASES[1::-1])
    assert capitals == small


def test_the_fingerprint_sees_the_pieces(tmp_path: Path) -> None:
    before = load_backbone(str(siglip1(tmp_path))).fingerprint
    path = tmp_path / "spiece.model"
    path.write_bytes(path.read_bytes() + b"\x9a\x06\x00")  # an empty extension: field 99
    assert load_backbone(str(tmp_path)).fingerprint != before


def test_a_class_without_its_file_is_refused(tmp_path: Path) -> None:
    siglip2(tmp_path, tokenizer_class="SiglipTokenizer")
    with pytest.raises(ConfigError, match=r"must hold spiece\.model, .*`SiglipTokenizer`"):
        load_backbone(str(tmp_path))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    siglip1(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"of no use")
    with pytest.raises(DataError, match=r"tokenizer in .* could not be loaded"):
        load_backbone(str(tmp_path))


def test_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    bare(tmp_path)
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        load_backbone(str(tmp_path))


def test_special_tokens_beyond_the_matrix_are_never_asked_for(tmp_path: Path) -> None:
    folder = tiny_lm(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == rows + 1
    lm = load_language_model(str(folder))
    assert lm.vocabulary == rows
    assert int(lm.tokenize(["a <image> of a dog"]).ids.max()) < rows
    tokenizer.eos_token = "<image>"
    with pytest.raises(ConfigError, match=f"fit the model's {rows} token"):
        check_fits(tokenizer, rows, folder)
    assert read_json(folder / "config.json")["vocab_size"] == rows
