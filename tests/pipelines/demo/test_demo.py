"""The embedded demo: its scenes, its sentences, its folder on disk and its weights."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch

from pipelines.demo import train_lm
from pipelines.demo.__main__ import Args
from pipelines.demo.drawings import draw
from pipelines.demo.lexicon import VOCABULARIES
from pipelines.demo.motion import clip_captions, invent_film
from pipelines.demo.render import render
from pipelines.demo.scenes import DOMAINS, SPLITS, Domain, Split, invent
from pipelines.demo.sentences import captions, tokens
from pipelines.demo.zero_shot import zero_shot
from tests import ROOT
from tests.tiny import tiny_shards
from trainables.errors import ConfigError
from trainables.models.language_model import TINY, load_language_model

CLIP = ROOT / "pipelines" / "demo" / "clip"
SIZES: dict[Split, int] = {"train": 12, "val": 4, "test": 6}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn")
    assert draw(out, "shifted", **SIZES) == out / "dataset.json"
    return out


def test_drawing_twice_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path, "shifted", **SIZES)
    again = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert again == {p.relative_to(drawn): p.read_bytes() for p in drawn.rglob("*") if p.is_file()}


def test_another_seed_draws_other_scenes() -> None:
    assert invent("base", "train", 0, seed=0) != invent("base", "train", 0, seed=1)


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_two_splits_share_an_image_or_a_composition(domain: Domain) -> None:
    seen: dict[str, Split] = {}
    for split in SPLITS:
        for index in range(100):
            scene = invent(domain, split, index)
            kinds = [thing.kind for thing in scene.things]
            pixels = hashlib.sha256(render(scene).tobytes()).hexdigest()
            for key in (pixels, f"{scene.ground} {scene.nested} {kinds}"):
                assert seen.setdefault(key, split) == split
    assert len(set(seen.values())) == len(SPLITS)


def test_the_folder_is_in_karpathy_layout(drawn: Path) -> None:
    dataset = json.loads((drawn / "dataset.json").read_text())
    assert dataset["dataset"] == "cliptune-demo"
    images = dataset["images"]
    assert [image["imgid"] for image in images] == list(range(sum(SIZES.values())))
    for split, size in SIZES.items():
        assert sum(image["split"] == split for image in images) == size
    assert {image["filename"] for image in images} == {
        path.name for path in (drawn / "images").iterdir()
    }
    sentids = [sentence["sentid"] for image in images for sentence in image["sentences"]]
    assert sentids == [sentid for image in images for sentid in image["sentids"]]
    assert sentids == list(range(5 * len(images)))
    assert all(s["tokens"] == tokens(s["raw"]) for image in images for s in image["sentences"])


@pytest.mark.parametrize("domain", DOMAINS)
def test_five_people_say_what_is_drawn_in_five_ways(domain: Domain) -> None:
    vocabulary = VOCABULARIES[domain]
    for index in range(100):
        scene = invent(domain, "train", index)
        said = captions(scene)
        assert len(set(said)) == 5
        complete = said[0]  # the first person leaves nothing out
        assert any(name in complete for name in vocabulary.grounds[scene.ground])
        for kind in {thing.kind for thing in scene.things}:
            assert any(name in complete for name in vocabulary.colours[kind.colour])
            assert any(
                one in complete or many in complete for one, many in vocabulary.shapes[kind.shape]
            )


@pytest.mark.parametrize("domain", DOMAINS)
def test_relations_are_those_of_the_picture(domain: Domain) -> None:
    vocabulary = VOCABULARIES[domain]
    checked = 0
    for index in range(200):
        scene = invent(domain, "val", index)
        colours = [thing.kind.colour for thing in scene.things]
        if len(scene.things) != 2 or scene.nested or colours[0] == colours[1]:
            continue
        left, right = sorted(scene.things, key=lambda thing: thing.x)
        if right.x - left.x < 0.2:
            continue
        for sentence in captions(scene):
            before, found, after = sentence.partition(vocabulary.relations["left"][0])
            if found and _names(before, domain, left.kind.colour):
                assert _names(after, domain, right.kind.colour)
                checked += 1
    assert checked


def _names(sentence: str, domain: Domain, colour: str) -> bool:
    return any(name in tokens(sentence) for name in VOCABULARIES[domain].colours[colour])


def test_the_shifted_domain_has_words_of_its_own() -> None:
    said = {
        domain: {
            w for i in range(300) for s in captions(invent(domain, "train", i)) for w in tokens(s)
        }
        for domain in DOMAINS
    }
    new = said["shifted"] - said["base"]
    assert {"crimson", "orb", "crate"} <= new
    assert {"red", "ball", "box"} <= said["shifted"] & said["base"]


def test_the_shipped_clip_is_small_and_whole() -> None:
    names = {path.name for path in CLIP.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in CLIP.iterdir()) <= 12 * 2**20


def test_the_config_knows_the_tokenizers_marks() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CLIP, local_files_only=True)
    text = json.loads((CLIP / "config.json").read_text())["text_config"]
    assert text["vocab_size"] == len(tokenizer)
    assert text["eos_token_id"] == tokenizer.eos_token_id != 2
    assert text["bos_token_id"] == tokenizer.bos_token_id
    assert text["pad_token_id"] == tokenizer.pad_token_id
    ids = tokenizer("a crimson orb, 7 ünïcode 日本")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1  # every word can be spelled


def test_zero_shot_is_far_above_chance_and_leaves_room() -> None:
    base, shifted = (zero_shot(CLIP, domain, images=200)["t2i_r1"] for domain in DOMAINS)
    assert 10 < shifted < base  # percent; chance is 0.5


def test_the_tiny_language_model_is_small_and_knows_the_demos_words() -> None:
    weights = sum(path.stat().st_size for path in TINY.iterdir())
    assert weights < 6e6
    lm = load_language_model("tiny")
    said = [s for n in range(20) for s in captions(invent("shifted", "val", n))]
    said += [s for n in range(20) for s in clip_captions(invent_film("val", n))]
    other = [" ".join(sentence.split()[::-1]) for sentence in said]
    assert [lm.text(lm.tokenize([s]).ids.tolist()[:-1]) for s in said] == said

    def nats(texts: list[str]) -> float:
        with torch.no_grad():
            return float(train_lm.nats(lm.model, train_lm.encode(lm.tokenizer, texts)))

    assert nats(said) < 2.0 < nats(other)  # of 886 tokens, a uniform guess costs 6.8


def test_a_language_model_can_be_trained_on_any_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tiny_shards(tmp_path / "shards")
    words = ["--shards", str(shards), "--out", str(tmp_path / "lm"), "--steps", "3"]
    monkeypatch.setattr(sys, "argv", ["train_lm", *words, "--tokens", "300"])
    train_lm.main()
    lm = load_language_model(str(tmp_path / "lm"))
    assert lm.text(lm.tokenize(["a red dog, \u00fc"]).ids.tolist()) == "a red dog, \u00fc"
    assert "48 sentences, the train captions" in (tmp_path / "lm" / "README.md").read_text()


def test_a_language_model_trained_briefly_warms_up_in_half_of_it() -> None:
    tokenizer = train_lm.build_tokenizer(["a dog"] * 3, 300)
    model = train_lm.build_model(tokenizer)
    before = model.lm_head.weight.detach().clone()
    rows = train_lm.encode(tokenizer, ["a dog", "a dog that never ends" * 99])
    train_lm.train(train_lm.Recipe(steps=2, warmup=2), rows, model)
    assert (model.lm_head.weight - before).abs().max() > 1e-3  # the whole rate, at the first step


def test_the_demos_are_one_at_a_time() -> None:
    with pytest.raises(ConfigError, match="three demos: give one"):
        Args(classes=True, clips=True)
