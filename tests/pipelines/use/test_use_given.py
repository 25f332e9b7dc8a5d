"""search, classify and caption on finished embeddings, in files and in the stores made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.encode.args import Args
from pipelines.encode.embeddings import encode_given
from pipelines.train import __main__ as train
from tests.pipelines.encode.test_given import WIDTH, save, table, vectors
from tests.pipelines.use.test_use import as_json, printed
from trainables.features.features import backbone_of
from trainables.models.backbone import Backbone
from trainables.models.text_tower import embed_text
from trainables.training.checkpoint import load_adapter

ROWS, ASKED = 60, 3
WORDS = ("a red dog", "a photo of a <b>blue</b> boat")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings with a text each, a store of them, runs of two tasks on it, and queries."""
    home = tmp_path_factory.mktemp("given")
    folder = home / "emb"
    folder.mkdir()
    for part in (0, 1):
        rows = [{"image_path": f"{part}/{n}.jpg", "caption": f"text {n}"} for n in range(ROWS)]
        table(folder / f"metadata/metadata_{part}.parquet", rows)
        save(folder / f"img_emb/img_emb_{part}.npy", vectors(ROWS, part))
        save(folder / f"text_emb/text_emb_{part}.npy", vectors(ROWS, part + 2))
    np.save(home / "asked.npy", vectors(ASKED, 9))
    store, _ = encode_given(Args(embeddings=folder, out=home / "features"))
    small = ("optim.lr=0.05", "epochs=1", "batch_size=12", "precision=fp32")
    train.run(train.Args(store, home / "projection", "projection", small))
    train.run(train.Args(store, home / "nearest", "nearest_caption"))
    (home / "store").symlink_to(store)
    return home


def unit(array: np.ndarray[Any, Any]) -> Tensor:
    return F.normalize(torch.from_numpy(array).float(), dim=-1)


def check(found: Any, names: list[str], scores: Tensor, asked: list[str], top: int) -> None:
    """`scores` (N, Q), each query with its `top` best names."""
    assert found["images"] == len(names)
    assert [query["query"] for query in found["queries"]] == asked
    for query, column in zip(found["queries"], scores.unbind(1), strict=True):
        best = column.argsort(descending=True)[:top].tolist()
        assert [match["path"] for match in query["matches"]] == [names[n] for n in best]
        given = torch.tensor([match["cosine"] for match in query["matches"]])
        torch.testing.assert_close(given, column[best])


def test_two_files_need_no_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, texts = home / "emb/img_emb/img_emb_0.npy", home / "asked.npy"
    scores = unit(vectors(ROWS, 0)) @ unit(vectors(ASKED, 9)).T
    names, asked = [f"{images}:{n}" for n in range(ROWS)], [f"{texts}:{n}" for n in range(ASKED)]
    words = ("search", "--images", images, "--texts", texts)
    check(as_json(capsys, *words, "--top", 4), names, scores, asked, 4)
    out, _ = printed(capsys, *words, "--top", "1")
    assert out.startswith(f"{ROWS} embeddings\n\n{texts}:0\n  ")


@pytest.mark.parametrize("images", ["emb", "store"])
def test_a_run_ranks_a_folder_or_its_store(
    home: Path, images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("search", "--run", home / "projection", "--images", home / images)
    found = as_json(capsys, *words, "--texts", home / "asked.npy", "--top", 5)
    adapter = load_adapter(home / "projection/best", backbone_of(home / "store"))
    every = torch.from_numpy(np.concatenate([vectors(ROWS, 0), vectors(ROWS, 1)])).float()
    empty: Any = None
    with torch.no_grad():
        seen = F.normalize(adapter.embed_images(every), dim=-1)
        texts = torch.from_numpy(vectors(ASKED, 9)).float()
        asked = F.normalize(adapter.embed_text(empty, texts), dim=-1)
    assert not torch.allclose(seen, F.normalize(every, dim=-1), atol=1e-3)
    names = [f"{part}/{n}.jpg" for part in (0, 1) for n in range(ROWS)]
    check(found, names, seen @ asked.T, [f"{home / 'asked.npy'}:{n}" for n in range(ASKED)], 5)


def test_words_ask_embeddings_by_the_text_tower(
    tmp_path: Path, clip: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(1).normal(size=(ROWS, backbone.embed_dim)).astype(np.float16)
    np.save(tmp_path / "img.npy", images)
    words = ("search", *WORDS, "--backbone", clip, "--images", tmp_path / "img.npy")
    with torch.no_grad():
        texts = F.normalize(embed_text(backbone, backbone.tokenize(WORDS)[0]), dim=1)
    names = [f"{tmp_path / 'img.npy'}:{n}" for n in range(ROWS)]
    check(as_json(capsys, *words), names, unit(images) @ texts.T, list(WORDS), 12)


def test_each_row_of_a_file_gets_a_caption(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = home / "emb/img_emb/img_emb_1.npy"
    rows = as_json(capsys, "caption", images, "--run", home / "nearest")
    assert [row["path"] for row in rows] == [f"{images}:{n}" for n in range(ROWS)]
    own = [row["caption"] == f"text {n}" for n, row in enumerate(rows)]
    assert sum(own) > ROWS / 2  # those that it was trained on
    every = as_json(capsys, "caption", home / "store", "--run", home / "nearest")
    assert [row["path"] for row in every[ROWS:]] == [f"1/{n}.jpg" for n in range(ROWS)]
    assert [row["caption"] for row in every[ROWS:]] == [row["caption"] for row in rows]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("search", "a dog", "--run", "{home}/projection", "--images", "{home}/emb"),
            "`a dog` has no embedding: the store was made without texts of classes",
        ),
        (
            ("search", "a dog", "--images", "{home}/emb", "--texts", "{home}/asked.npy"),
            "`--texts` stands in the place of words: give one of them, got both",
        ),
        (
            ("search", "--images", "{home}/emb", "--texts", "{home}/none.npy"),
            "`{home}/none.npy` is no file of embeddings",
        ),
        (
            ("search", "--images", "{home}/none.npy", "--texts", "{home}/asked.npy"),
            "`{home}/none.npy` is no file of embeddings",
        ),
        (
            ("search", "--images", "{home}/emb", "--texts", "{home}/wide.npy"),
            "`{home}/emb/img_emb/img_emb_0.npy` must have vectors of width 3, got 16",
        ),
        (
            ("search", "--images", "{home}/nan.npy", "--texts", "{home}/asked.npy"),
            "`{home}/nan.npy`, row 1: the vector has NaN",
        ),
        (
            ("search", "--images", "{home}/model.pt", "--texts", "{home}/asked.npy"),
            "`{home}/model.pt` is refused: it can run code when it is loaded",
        ),
        (
            ("search", "--images", "{home}/features", "--texts", "{home}/asked.npy"),
            "`{home}/features` holds no image: no name in it ends in .bmp",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    home: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "model.pt").write_bytes(b"")
    np.save(home / "wide.npy", np.ones((2, 3), np.float32))
    bad = np.ones((2, WIDTH), np.float32)
    bad[1, 3] = np.nan
    np.save(home / "nan.npy", bad)
    out, err = printed(capsys, *(word.format(home=home) for word in words), code=2)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.format(home=home) in err


def test_a_run_on_embeddings_sees_no_images(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    good, bad = home / "emb/img_emb/img_emb_0.npy", tmp_path / "wide.npy"
    np.save(bad, np.ones((2, 3), np.float32))
    words = ("caption", tmp_path / "a.jpg", bad, good, "--run", home / "nearest")
    out, err = printed(capsys, *words, code=1)
    assert out.count("\n") == ROWS + 1
    assert err == (
        f"warning: `{tmp_path / 'a.jpg'}`: the run has no tower for images: give it files of "
        f"embeddings\nwarning: `{bad}`: must have vectors of width {WIDTH}, got 3.\n"
    )
