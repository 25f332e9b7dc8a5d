"""An adapter on the Hub: pushed to a stand-in of it, with a card, and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import yaml

import cliptune
import trainables.models.load
from pipelines.cli import stage_main
from pipelines.pages.layout import cell
from pipelines.runs.package import NAME
from tests.hub import TOKEN, Hub, hub
from tests.pipelines.train.test_train import fails
from tests.things import things
from tests.tiny import tiny_shards

COMMIT = "0" * 40
BASE = ("--base", "org/clip", "--base-revision", COMMIT, "--license", "mit")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A run on captions that was measured on test, and one of classes that was not."""
    home = tmp_path_factory.mktemp("push")
    tiny_shards(home / "shards", {"train": 24, "val": 12, "test": 12})
    things(home / "things")
    store = cliptune.encode(home / "shards", backbone=clip, out=home / "captions")
    cliptune.train(store, home / "mine", adapter="soft_prompt", set={"epochs": 2})
    cliptune.evaluate(home / "mine", bootstrap=100)
    labelled = cliptune.encode(home / "things", backbone=clip, out=home / "labelled")
    draw = cliptune.draw(home / "things", shots=2, out=home / "draw.json")
    cliptune.train(labelled, home / "few", adapter="linear_probe", draw=draw, set={"epochs": 3})
    return home


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: Path) -> Iterator[Hub]:
    """The Hub, on this machine, with a token that is right; it has the frozen model."""
    plain = trainables.models.load.locate

    def locate(name: str, *rest: Any) -> Path:
        return clip if name == "org/clip" else plain(name, *rest)

    with hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(trainables.models.load, "locate", locate)
        yield server


def push(run: Path, *words: str) -> None:
    stage_main("push", ["--run", str(run), "--repo", "me/it", *BASE, *words])


def card_of(server: Hub) -> tuple[dict[str, Any], str]:
    """The front matter and the text."""
    _, front, text = server.files["me/it"]["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(front), text


def test_what_is_pushed_is_read_back_anywhere(
    home: Path, there: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    push(home / "few")
    assert re.search(rf"pushed [0-9a-f]{{40}} to {there.url}/me/it", capsys.readouterr().out)
    found, own = cliptune.load("me/it"), cliptune.load(home / "few")
    assert (found.name, found.task, found.classes) == (own.name, own.task, own.classes)
    embeds = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    assert found.classify(embeds).equals(own.classify(embeds))
    assert found.classify(embeds, confidence=0.6).equals(own.classify(embeds, confidence=0.6))


def test_words_are_asked_of_it_too(home: Path, there: Hub) -> None:
    push(home / "mine")
    texts = ["a red dog", "a blue cat"]
    found = cliptune.load("me/it", revision=there.commit("me/it")).embed_text(texts)
    np.testing.assert_array_equal(found, cliptune.load(home / "mine").embed_text(texts))


def test_no_token_is_written_or_said(
    home: Path, there: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(home / "few")
    cliptune.load("me/it")
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    every = b"".join(there.files["me/it"].values())
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert TOKEN.encode() not in every + b"".join(path.read_bytes() for path in kept)


def test_the_card_says_what_test_said(home: Path, there: Hub) -> None:
    push(home / "mine")
    front, text = card_of(there)
    assert (front["license"], front["base_model"]) == ("mit", "org/clip")
    result = json.loads((home / "mine/result.json").read_text())
    for row in result["rows"]:
        one = row["metrics"]["t2i_r1@12"]
        assert f"| {one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}] |" in text
    assert "paired" in text
    assert re.search(r"It (beats|is not shown to beat|is worse than) zero-shot\.", text)
    assert "Test was opened 1 time for this run." in text
    assert 'cliptune.load("me/it")' in text
    assert str(home) not in text


def test_the_card_claims_nothing_that_was_not_measured(home: Path, there: Hub) -> None:
    push(home / "few")
    _, text = card_of(there)
    assert "The test split was not opened" in text
    assert "zero-shot" not in text
    assert "- Classes: ball, boat, cat, tree." in text


def test_names_of_classes_are_text() -> None:
    assert cell("a | <b> [c](d)\n# e") == r"a \| &lt;b> \[c\](d) \# e"


def test_a_folder_of_it_is_enough(home: Path, there: Hub, tmp_path: Path) -> None:
    push(home / "few", "--out", str(tmp_path / "it"))
    assert there.asked == []
    found = cliptune.load(tmp_path / "it")
    assert found.classes == ("ball", "boat", "cat", "tree")
    weights = tmp_path / "it/adapter/adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(cliptune.CheckpointError, match=r"adapter\.safetensors"):
        cliptune.load(tmp_path / "it")
    (tmp_path / "it" / NAME).write_text('{"format": "cliptune-package-1"}')
    with pytest.raises(cliptune.DataError, match=NAME):
        cliptune.load(tmp_path / "it")


def test_another_frozen_model_is_told(
    home: Path, there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny import tiny_clip

    push(home / "few")
    other = tiny_clip(tmp_path / "other", seed=5)
    monkeypatch.setattr(trainables.models.load, "locate", lambda *_: other)
    with pytest.raises(cliptune.DataError, match="`org/clip` has other files than the model"):
        cliptune.load("me/it")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--repo", "it", *BASE], "`--repo` must be `user/name`, got it."),
        (["--repo", "me/it", *BASE[:4]], "`--license` must be a licence as the Hub calls it"),
        (["--repo", "me/it", "--license", "mit"], "has its frozen model from a folder"),
        (["--repo", "me/it", *BASE[:2], *BASE[4:]], "`--base-revision` must be a commit of"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_asked(
    words: list[str], said: str, home: Path, there: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(capsys, "push", "--run", str(home / "few"), *words)
    assert there.asked == []


def test_a_hub_that_refuses_is_told(
    home: Path, there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    words = ("push", "--run", str(home / "few"), "--repo", "me/it", *BASE)
    said = fails(capsys, *words)
    assert "could not be pushed" in said
    assert "401" in said
    assert "hf_wrong" not in said
    assert there.files == {}


def test_what_the_hub_does_not_have_is_told(there: Hub) -> None:
    with pytest.raises(cliptune.ConfigError, match="`me/nothing` is no folder here"):
        cliptune.load("me/nothing")
    there.files["me/other"] = {"README.md": b"x"}
    with pytest.raises(cliptune.DataError, match="holds no adapter of cliptune"):
        cliptune.load("me/other")
