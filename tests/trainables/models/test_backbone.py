"""Loading: what is accepted, what is refused and why, and what a `Backbone` promises."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from tests import ROOT
from tests.tiny import EOT, SOT, tiny_clip, tiny_siglip
from trainables.errors import CliptuneError, ConfigError, DataError
from trainables.files import read_json, write_json
from trainables.models.image_tower import embed_images
from trainables.models.load import load_backbone

DATA = ROOT.parent / "shared" / "data"
SHA = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"


@pytest.fixture
def folder(tmp_path: Path, clip: Path) -> Path:
    return Path(shutil.copytree(clip, tmp_path / "copy of clip ü"))


def test_facts_of_a_clip(clip: Path) -> None:
    backbone = load_backbone(str(clip))
    assert backbone.kind == "clip"
    assert (backbone.embed_dim, backbone.text_width, backbone.context_length) == (16, 32, 77)
    assert backbone.scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert backbone.bias == 0
    assert (backbone.name, backbone.revision) == (str(clip.resolve()), None)
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_facts_of_a_siglip(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_siglip(tmp_path)))
    assert backbone.kind == "siglip"
    assert (backbone.embed_dim, backbone.text_width, backbone.context_length) == (32, 32, 64)
    assert backbone.start_token is None
    assert backbone.bias == float(backbone.model.logit_bias)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    values = images.float() / 127.5 - 1
    reference = backbone.model.get_image_features(pixel_values=values).pooler_output
    torch.testing.assert_close(embed_images(backbone, images), reference, rtol=1e-4, atol=1e-5)


def test_half_precision_weights_are_computed_in_fp32(folder: Path) -> None:
    weights = folder / "model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(half, weights, {"format": "pt"})
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": "float16"})
    backbone = load_backbone(str(folder))
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32}
    assert (
        embed_images(backbone, torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).dtype == torch.float32
    )


class Canary:
    """Unpickling this leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pkl"])
def test_pickled_weights_are_refused_unopened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ConfigError, match=rf"{name}` is refused.*save_pretrained"):
        load_backbone(str(folder))
    assert not canary.exists()


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["text_projection.weight"]
    save_file(tensors, path, {"format": "pt"})


def other_type(folder: Path) -> None:
    write_json(folder / "config.json", read_json(folder / "config.json") | {"model_type": "clap"})


def other_size(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    write_json(path, read_json(path) | {"size": 64, "crop_size": 64})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop("model.safetensors"), "has no weights"),
        (drop("config.json"), "has no config.json"),
        (drop("preprocessor_config.json"), "has no preprocessor_config.json"),
        (drop("tokenizer.json"), "has no vocab.json"),
        (truncate, "could not be loaded"),
        (lose_a_tensor, "got none for `text_projection.weight`"),
        (other_type, "unknown model type `clap`. Did you mean `clip`"),
        (other_size, "images of 32 pixels.*got 64"),
    ],
)
def test_a_broken_folder_is_refused(
    folder: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(folder)
    with pytest.raises(CliptuneError, match=message):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("/no/such/folder", None, "neither a directory nor a Hub id"),
        ("openai/clip", None, "needs `--revision`.*got None"),
        ("openai/clip", "main", "needs `--revision`.*got 'main'"),
        ("openai/clip", SHA[:12], "needs `--revision`"),
    ],
)
def test_an_unpinned_or_missing_model_is_refused(
    name: str, revision: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backbone(name, revision)


def test_a_revision_of_a_directory_is_refused(clip: Path) -> None:
    with pytest.raises(ConfigError, match="local directory"):
        load_backbone(str(clip), SHA)


def test_hub_model_at_a_pinned_commit(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, **arguments: Any) -> str:
        asked.update(arguments, name=name)
        return str(clip)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    backbone = load_backbone("openai/clip", SHA)
    assert (asked["name"], asked["revision"]) == ("openai/clip", SHA)
    patterns = asked["allow_patterns"]
    assert all(p.endswith((".safetensors", ".json", ".txt", ".model")) for p in patterns)
    assert (backbone.name, backbone.revision) == ("openai/clip", SHA)
    assert backbone.fingerprint == load_backbone(str(clip)).fingerprint


def test_a_failed_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(name: str, **arguments: Any) -> str:
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ConfigError, match=r"could not fetch `openai/clip`.*no network at all"):
        load_backbone("openai/clip", SHA)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"]
)
def test_fingerprint_sees_every_file_that_matters(folder: Path, name: str) -> None:
    before = load_backbone(str(folder)).fingerprint
    data = (folder / name).read_bytes()
    # A flipped bit in the last weight, a space at the end of a JSON file.
    changed = (
        data[:-4] + bytes([data[-4] ^ 1]) + data[-3:] if name.endswith("tensors") else data + b" "
    )
    (folder / name).write_bytes(changed)
    (folder / "README.md").write_text("of no consequence")
    assert load_backbone(str(folder)).fingerprint != before
    (folder / name).write_bytes(data)
    assert load_backbone(str(folder)).fingerprint == before


def test_special_tokens_in_a_caption_are_text(clip: Path) -> None:
    backbone = load_backbone(str(clip))
    texts = [f"a {EOT} dog", f"{SOT}{EOT}", EOT * 40, f" {EOT}"]
    tokens, truncated = backbone.tokenize(texts)
    assert truncated == 1  # the third: 40 of them are more than 77 pieces
    special = {backbone.start_token, backbone.end_token}
    for n in range(len(texts)):
        ids = tokens.ids[tokens.offsets[n] : tokens.offsets[n + 1]].tolist()
        assert ids[0] == backbone.start_token
        assert ids[-1] == backbone.end_token
        assert len(ids) > 3
        assert special.isdisjoint(ids[1:-1])


@pytest.mark.parametrize("length", [0, 1, 74, 75, 76, 90])
def test_truncation_keeps_eot_and_counts(clip: Path, length: int) -> None:
    backbone = load_backbone(str(clip))
    tokens, truncated = backbone.tokenize(["dog " * length, "a cat"])
    assert truncated == (length > 75)
    assert tokens.lengths.tolist() == [min(length + 2, 77), 4]
    assert tokens.ids[int(tokens.offsets[1]) - 1] == backbone.end_token


def test_siglip_captions_end_at_eos_without_a_start(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_siglip(tmp_path)))
    tokens, truncated = backbone.tokenize(["a red dog", "dog " * 70, "a </s> dog"])
    assert truncated == 1
    assert tokens.lengths[:2].tolist() == [4, 64]
    assert (tokens.ids == backbone.end_token).sum() == 3


def test_captions_equal_the_real_tokenizers(folder: Path) -> None:
    vocabulary = DATA / "tokenizers" / "clip"
    if not vocabulary.is_dir():
        pytest.skip("CLIP's real vocabulary is not here (../shared/data/tokenizers/clip)")
    (folder / "tokenizer.json").unlink()
    for path in vocabulary.iterdir():
        shutil.copyfile(path, folder / path.name)
    with pytest.raises(ConfigError, match="583 token embeddings, got 49408"):
        load_backbone(str(folder))  # before any index can be out of range
    real = tiny_clip(folder.parent / "large", vocab_size=49408)
    (real / "tokenizer.json").unlink()
    for path in vocabulary.iterdir():
        shutil.copyfile(path, real / path.name)
    backbone = load_backbone(str(real))
    texts = ["A photo of a dog's 2 balls!", "naïve café 🐕", "", "  two   spaces ", "x" * 300]
    tokens, _ = backbone.tokenize(texts)
    reference = CLIPTokenizer.from_pretrained(vocabulary)(texts, truncation=True, max_length=77)
    assert tokens.ids.tolist() == [i for ids in reference["input_ids"] for i in ids]


def test_isolated_shares_every_tensor_and_no_module(clip: Path) -> None:
    backbone = load_backbone(str(clip))
    copy = backbone.isolated()
    modules = {id(module) for module in backbone.model.modules()}
    assert modules.isdisjoint(id(module) for module in copy.model.modules())
    assert [id(p) for p in copy.model.parameters()] == [id(p) for p in backbone.model.parameters()]
    assert [id(b) for b in copy.model.buffers()] == [id(b) for b in backbone.model.buffers()]


def test_damaged_weights_are_a_data_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="could not be loaded"):
        load_backbone(str(folder))
