"""A run put to use: search, classify and caption against direct calls of the towers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from pipelines.classify.answers import UNLIKE, UNLIKELY
from pipelines.cli import stage_main
from pipelines.search import index, older
from pipelines.search.kept import Kept
from pipelines.train import __main__ as train
from pipelines.use import captions, embedding, files
from pipelines.use import model as using
from pipelines.use.files import Faults, find
from pipelines.use.model import Model, Source, open_model
from pipelines.use.queries import embed_words
from tests import films
from tests.films import BLUE, RED
from tests.tiny import COLOURS, picture, tiny_features
from trainables.adapters.base import Adapter
from trainables.adapters.nearest_caption import NearestCaption
from trainables.adapters.registry import make_config
from trainables.errors import ConfigError
from trainables.features.classes import Classes
from trainables.features.few_shot import Draw, Member, write_draw
from trainables.features.frames import Frames
from trainables.features.split import SplitFeatures
from trainables.files import read_json, sha256_bytes, sha256_json, write_hashed, write_json
from trainables.media.clips import Rule
from trainables.media.image_headers import BadImage
from trainables.media.images import decode
from trainables.metrics.calibration import Kind
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images, lower
from trainables.models.text_tower import embed_text
from trainables.training import predict
from trainables.training.checkpoint import load_adapter

TRAIN, VAL, PICTURES = 24, 12, 10
QUERIES = ("a red dog", "a photo of a <b>blue</b> boat")
Found = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A feature store, a draw of its colours, and runs of both tasks."""
    home = tmp_path_factory.mktemp("use")
    store = tiny_features(home / "store", images=TRAIN, val=VAL, pixels=True, clip=clip)
    members = {
        split: tuple(Member(f"{split}-{i:03}", f"{split}{i}", i % 6) for i in range(count))
        for split, count in (("train", TRAIN), ("val", VAL))
    }
    names = tuple(f"{colour} car" for colour in COLOURS)
    draw = Draw("tiny", "", 4, 1, "all", names, tuple(range(6)), "a {}.", **members)
    write_draw(home / "draw.json", draw)
    small = ("optim.lr=0.05", "epochs=1", "batch_size=12", "precision=fp32")
    own = {
        "soft": ("soft_prompt", *small, "adapter.n_ctx=3"),
        "lora": ("lora", *small, "adapter.tower=both"),
        "projection": ("projection", *small),
        "coop": ("coop", *small, "adapter.n_ctx=2"),
        "cocoop": ("cocoop", *small, "adapter.n_ctx=2"),
        "csc": ("coop", *small, "adapter.n_ctx=2", "adapter.class_specific=true"),
    }
    for name, (adapter, *fields) in own.items():
        given = home / "draw.json" if name in ("coop", "cocoop", "csc") else None
        train.run(train.Args(store, home / name, adapter, tuple(fields), given))
    return home


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten pictures, two of them deeper; what is hidden or no image stays out."""
    folder = tmp_path / "images"
    (folder / "deeper" / "still").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for n in range(PICTURES):
        (folder / ("deeper/still" if n > 7 else ".") / f"{n}.jpg").write_bytes(picture(n))
    for name in (".hidden/1.jpg", ".2.jpg", "notes.txt"):
        (folder / name).write_bytes(picture(99))
    return folder


def files_of(folder: Path) -> list[Path]:
    return [folder / ("deeper/still" if n > 7 else ".") / f"{n}.jpg" for n in range(PICTURES)]


def printed(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    """What a command writes to stdout and stderr; it must end with exit code `code`."""
    capsys.readouterr()
    ended = 0
    try:
        stage_main(str(words[0]), [str(word) for word in words[1:]])
    except SystemExit as error:
        ended = int(error.code or 0)
    found = capsys.readouterr()
    assert ended == code, found.err
    return found.out, found.err


def as_json(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    return json.loads(printed(capsys, *words, "--json", code=code)[0])


def pixels_of(backbone: Backbone, paths: Sequence[Path]) -> Tensor:
    return torch.stack([backbone.preprocess.apply(decode(path.read_bytes())) for path in paths])


@torch.no_grad()
def images_of(adapter: Adapter[Any], paths: Sequence[Path]) -> Tensor:
    backbone, block = adapter.backbone, adapter.image_block
    pixels = pixels_of(backbone, paths)
    hidden = None if block is None else lower(backbone, pixels, block)
    return F.normalize(adapter.embed_images(embed_images(backbone, pixels), hidden), dim=1)


@torch.no_grad()
def texts_of(adapter: Adapter[Any], words: Sequence[str]) -> Tensor:
    tokens, _ = adapter.backbone.tokenize(words)
    frozen = embed_text(adapter.backbone, tokens)
    return F.normalize(adapter.embed_text(tokens, frozen), dim=1)


def check_ranking(found: Found, paths: Sequence[Path], scores: Tensor, top: int) -> None:
    """`scores` (N, Q) of `paths`; equal to fp32 rounding."""
    assert [query["query"] for query in found["queries"]] == list(QUERIES)
    for query, column in zip(found["queries"], scores.unbind(1), strict=True):
        wanted = sorted(zip(column.tolist(), map(str, paths), strict=True), reverse=True)[:top]
        assert [match["path"] for match in query["matches"]] == [path for _, path in wanted]
        given = torch.tensor([match["cosine"] for match in query["matches"]])
        torch.testing.assert_close(given, torch.tensor([score for score, _ in wanted]))


@pytest.mark.parametrize("run", ["soft", "lora", "projection"])
def test_search_ranks_by_the_adapters_own_cosines(
    home: Path, images: Path, backbone: Backbone, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--run", home / run, "--images", images, "--top", 4)
    found = as_json(capsys, "search", *QUERIES, *flags, "--index", images.parent / "index")
    assert (found["images"], found["new"], found["page"]) == (PICTURES, PICTURES, None)
    adapter, paths = load_adapter(home / run / "best", backbone), files_of(images)
    assert (adapter.image_block is not None) == (run == "lora")
    check_ranking(found, paths, images_of(adapter, paths) @ texts_of(adapter, QUERIES).T, 4)


def test_search_with_a_bare_backbone_is_clip_itself(
    images: Path, clip: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, "search", *QUERIES, "--backbone", clip, "--images", images)
    with torch.no_grad():
        tower = F.normalize(embed_images(backbone, pixels_of(backbone, files_of(images))), dim=1)
        words = F.normalize(embed_text(backbone, backbone.tokenize(QUERIES)[0]), dim=1)
    check_ranking(found, files_of(images), tower @ words.T, PICTURES)


def test_only_what_is_new_is_embedded(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images.parent / "index"

    def search(run: str = "soft") -> Found:
        flags = ("--run", home / run, "--images", images, "--index", folder)
        return as_json(capsys, "search", QUERIES[0], *flags)  # type: ignore[no-any-return]

    first = search()
    assert search() == first | {"new": 0}
    changed, gone = files_of(images)[:2]
    changed.write_bytes(picture(50))
    gone.unlink()
    (images / "added.jpg").write_bytes(picture(51))
    found = search()
    assert (found["images"], found["new"]) == (PICTURES, 2)
    listed = {match["path"] for match in found["queries"][0]["matches"]}
    assert str(images / "added.jpg") in listed
    assert str(gone) not in listed
    os.utime(changed, ns=(1, 1))  # the same bytes, but nobody can know
    assert search()["new"] == 1
    assert search("projection")["new"] == PICTURES  # another adapter, another index
    assert search()["new"] == 0


def test_an_index_holds_several_folders(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--run", home / "soft", "--index", images.parent / "index")
    one = as_json(capsys, "search", "red", *flags, "--images", images / "deeper")
    assert (one["images"], one["new"]) == (2, 2)
    assert as_json(capsys, "search", "red", *flags, "--images", images)["new"] == PICTURES - 2
    assert as_json(capsys, "search", "red", *flags, "--images", images / "deeper")["new"] == 0


def keeping(home: Path, images: Path) -> tuple[object, ...]:
    """A search that keeps its index beside the images."""
    words = ("search", "red", "--run", home / "soft", "--images", images)
    return (*words, "--index", images.parent / "index")


@pytest.mark.parametrize("name", ["index.json", "rows-*.bin", "names-*.arrow"])
def test_a_damaged_index_is_made_anew(
    home: Path, images: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = keeping(home, images)
    first = as_json(capsys, *words)
    path = next((images.parent / "index").glob(f"*/{name}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    out, err = printed(capsys, *words, "--json")
    assert json.loads(out) == first
    assert f"warning: the index in `{path.parent}` is damaged: it is made anew" in err
    assert len(list(path.parent.glob("rows-*"))) == 1
    assert as_json(capsys, *words)["new"] == 0


def write_older(folder: Path) -> None:
    """The index in `folder` as the first format had it."""
    kept = Kept.open(folder, 16)
    assert kept is not None
    table = kept.names.table.sort_by("row").to_pylist()
    data = save({"embeds": kept.rows().values})
    value = {
        "format": older.FORMAT,
        "embeds": sha256_bytes(data),
        "files": [[e["name"], e["size"], e["changed"]] for e in table if e["row"] >= 0],
        "bad": [[*list(e.values())[:3], e["reason"]] for e in table if e["row"] < 0],
    }
    for path in folder.iterdir():
        path.unlink()
    (folder / f"embeds-{value['embeds']}.safetensors").write_bytes(data)
    text = json.dumps(value | {"sha256": sha256_json(value)})
    (folder / older.MANIFEST).write_text(text)


def test_an_index_of_the_format_before_is_taken_over(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "empty.png").touch()
    words = keeping(home, images)
    first = as_json(capsys, *words)
    folder = next(path for path in (images.parent / "index").iterdir())
    write_older(folder)
    assert as_json(capsys, *words) == first | {"new": 0}
    assert not (folder / older.MANIFEST).exists()
    assert not list(folder.glob("embeds-*"))
    write_older(folder)
    embeds = next(folder.glob("embeds-*"))
    embeds.write_bytes(embeds.read_bytes()[:-1])
    out, err = printed(capsys, *words, "--json")
    assert json.loads(out) == first
    assert f"warning: the index in `{folder}` is damaged: it is made anew" in err


def test_an_index_that_others_own_is_read(
    home: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = keeping(home, images)
    first = as_json(capsys, *words)
    (images / "added.jpg").write_bytes(picture(51))
    monkeypatch.setattr(index, "alone", lambda lock: nullcontext(False))
    out, err = printed(capsys, *words, "--json")
    assert "cannot be written: nothing is kept" in err
    assert json.loads(out)["new"] == 1
    assert json.loads(out)["images"] == PICTURES + 1
    (images / "added.jpg").unlink()
    assert as_json(capsys, *words) == first | {"new": 0}


def test_an_index_of_dead_rows_is_copied_without_them(
    home: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = keeping(home, images)
    first = as_json(capsys, *words)
    monkeypatch.setattr(index, "BLOCK", 1)
    for time in (1, 2):
        for path in files_of(images):
            os.utime(path, ns=(time, time))
        assert as_json(capsys, *words) == first
    rows = next((images.parent / "index").glob("*/rows-*.bin"))
    assert (rows.name, rows.stat().st_size) == ("rows-2.bin", PICTURES * 16 * 4)
    assert as_json(capsys, *words) == first | {"new": 0}


def test_an_interrupted_index_goes_on(
    home: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = iter(range(3))

    def embed(adapter: Adapter[Any], data: SplitFeatures) -> Tensor:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return predict.embed_images(adapter, data)

    words = keeping(home, images)
    with monkeypatch.context() as patch:
        for module in (files, embedding):
            patch.setattr(module, "CHUNK", 4)
        patch.setattr(index, "PART", 4)
        patch.setattr(index, "SAVE_EVERY", -1.0)
        patch.setattr(index, "embed_images", embed)
        _, err = printed(capsys, *words, code=130)
    assert "interrupted: run the same command again to go on." in err
    assert as_json(capsys, *words)["new"] == PICTURES - 8


def test_an_index_that_cannot_be_kept_is_told(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("search", "red", "--run", home / "soft", "--images", images)
    words = (*words, "--index", images / "notes.txt", "--out", images.parent / "page.html")
    out, err = printed(capsys, *words)
    assert f"{PICTURES} images, {PICTURES} new; not kept" in out
    assert re.search(rf"warning: `{images}/notes.txt/\w+` cannot be written: nothing is kept", err)


def test_bad_files_are_named_once_and_the_rest_is_found(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "cut.jpg").write_bytes(picture(1)[:400])
    (images / "empty.png").touch()
    words = ("search", "red", "--run", home / "soft", "--images", images)
    words = (*words, "--index", images.parent / "index", "--out", images.parent / "page.html")
    out, err = printed(capsys, *words)
    assert f"{PICTURES} images, {PICTURES} new, 2 cannot be read; kept in " in out
    assert f"warning: `{images / 'cut.jpg'}`: truncated JPEG\n" in err
    assert f"warning: `{images / 'empty.png'}`: empty file\n" in err
    out, err = printed(capsys, *words)
    assert f"{PICTURES} images, 0 new, 2 cannot be read" in out
    assert "warning" not in err
    (images / "cut.jpg").write_bytes(picture(1))
    found = as_json(capsys, *words)
    assert (found["images"], found["new"]) == (PICTURES + 1, 1)
    assert found["unreadable"] == [{"path": str(images / "empty.png"), "error": "empty file"}]
    bad = images.parent / "bad"
    bad.mkdir()
    (bad / "x.jpg").touch()
    _, err = printed(capsys, *words[:4], "--images", bad, code=2)
    assert err.endswith(f"error: `{bad}`: none of its 1 images can be read.\n")


def test_the_page_is_whole_inert_and_the_same_again(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = images.parent / "pages" / "found.html"
    words = ("search", *QUERIES, "--run", home / "soft", "--images", images, "--top", 3)
    words = (*words, "--index", images.parent / "index", "--out", page)
    out, _ = printed(capsys, *words)
    assert out.endswith(f"wrote {page}\nnext: open {page} in a browser\n")
    text = page.read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "2 searches in 10 images" in text
    assert text.count('src="data:image/jpeg;base64,') == len(re.findall(r"<img", text)) == 6
    assert "&lt;b&gt;blue&lt;/b&gt;" in text
    assert not re.search(r"<b>blue|<script|https?://", text)
    found = re.findall(r"^ +(\d)  (.+)$", out, re.MULTILINE)  # place, path
    assert len(found) == 6
    for place, path in found:
        assert f"<b>{place}</b><br>{Path(path).name}<" in text
    assert not re.search(r"\d\.\d\d", out.split("blue")[1])  # a cosine is no probability
    printed(capsys, *words)
    assert page.read_text() == text


def test_the_page_and_the_index_lie_in_the_run(
    home: Path,
    images: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out, _ = printed(capsys, "search", "red", "--run", home / "soft", "--images", images)
    assert f"kept in {home / 'soft' / 'index'}/" in out
    assert "“red” in 10 images" in (home / "soft" / "found.html").read_text()
    out, _ = printed(capsys, "search", "red", "--backbone", clip, "--images", images)
    assert "not kept, `--index FOLDER` would" in out
    assert (tmp_path / "found.html").is_file()
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("search", "x", "--images", "{home}/store", "--run", "r"),
            "holds no image: no name in it ends in",
        ),
        (
            ("search", "x", "--images", "{home}/none", "--run", "r"),
            "`--images` must name a folder, or a file of embeddings, got",
        ),
        (
            ("search", "x", "--images", "{images}/given.npy", "--run", "{home}/lora"),
            "`lora` changes the image tower, which finished embeddings have passed: give images",
        ),
        (
            (
                "search",
                "--images",
                "{images}",
                "--run",
                "{home}/soft",
                "--texts",
                "{images}/given.npy",
            ),
            "`soft_prompt` changes words before their embeddings are made: give words instead",
        ),
        (("search", "", "--images", "{images}"), "takes words to look for, got none"),
        (("search", "--images", "{images}"), "takes words to look for, got none"),
        (
            ("search", "x", "--images", "{images}", "--top", "0"),
            "`--top` must be at least 1, got 0",
        ),
        (
            ("search", "x", "--images", "{images}"),
            "`--run` or `--backbone` must name the model, got neither",
        ),
        (
            ("search", "x", "--images", "{images}", "--run", "{home}/soft", "--backbone", "y"),
            "`--run` or `--backbone` must name the model, got both",
        ),
        (
            ("search", "x", "--images", "{images}", "--run", "{home}/soft", "--revision", "y"),
            "`--revision` is of a `--backbone`",
        ),
        (
            ("search", "x", "--images", "{images}", "--run", "{home}/coop"),
            "`{home}/coop` is a run of classification: it tells its own classes apart. Use "
            "`cliptune classify IMAGE --run {home}/coop`, or give a run that finds images by "
            "words.",
        ),
        (("search", "x", "--images", "{images}", "--run", "{home}"), "holds no run"),
        (
            ("caption", "x.jpg", "--run", "{home}/soft"),
            "`{home}/soft` is a run of retrieval: it finds images by words. Use "
            "`cliptune search 'WORDS' --images DIR --run {home}/soft`, or give a run that writes "
            "captions.",
        ),
        (("caption", "--run", "{home}/soft"), "takes files of images or videos, got none"),
        (
            ("caption", "x.jpg", "--run", "{home}/soft", "--seconds", "0"),
            "must be at least 0.5, got 0",
        ),
        (("classify", "--run", "{home}/coop"), "takes image files, got none"),
        (
            ("classify", "x.jpg", "--run", "{home}/soft"),
            "`--classes` must name what to choose among: `soft_prompt` was trained without classes",
        ),
        (
            ("classify", "x.jpg", "--run", "{home}/csc", "--classes", "a", "b"),
            "`--classes` cannot be asked of `coop`: it knows only the 6 classes that it was",
        ),
        (
            ("classify", "x.jpg", "--run", "{home}/coop", "--classes", "a"),
            "`--classes` must name at least 2 classes, got 1",
        ),
        (
            ("classify", "x.jpg", "--run", "{home}/coop", "--classes", "a", "A"),
            "`--classes` must differ in more than case, got a, A",
        ),
        (
            ("classify", "x.jpg", "--run", "{home}/coop", "--classes", "a", " "),
            "`--classes` must be words, got an empty one",
        ),
        (
            ("classify", "x.jpg", "--run", "{home}/none", "--template", "a {{}}"),  # told first
            "`--template` is for `--classes`",
        ),
        (
            ("classify", "x", "--run", "{home}/coop", "--template", "a", "--classes", "b", "c"),
            "`template` must hold `{{}}` once",
        ),
        (
            ("classify", "x", "--run", "{home}/coop", "--tops", "3"),
            "unknown flag `--tops`. Did you mean `--top`?",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    home: Path,
    images: Path,
    backbone: Backbone,
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"home": home, "images": images}
    np.save(images / "given.npy", np.ones((2, backbone.embed_dim), np.float16))
    out, err = printed(capsys, *(word.format(**places) for word in words), code=2)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.format(**places) in err


def test_a_run_without_its_store_says_what_is_missing(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, gone = images.parent / "moved", images.parent / "gone"
    shutil.copytree(home / "soft", moved)
    about = json.loads((moved / "run.json").read_text())
    write_hashed(moved / "run.json", about | {"features": str(gone)})
    _, err = printed(capsys, "search", "red", "--run", moved, "--images", images, code=2)
    assert err.startswith(f"error: `{moved}` was trained on `{gone}`, which is not there any more")
    assert f"type `cliptune relink --run {moved} --features NEW_PLACE`" in err


@pytest.mark.parametrize("kind", ["run.json", "study.json"])
def test_a_run_is_told_where_its_store_lies_now(
    home: Path, images: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own, store = images.parent / "its own", images.parent / "new" / "store"
    shutil.copytree(home / "soft", own)
    about = json.loads((own / "run.json").read_text())
    (own / "run.json").rename(own / kind)
    shutil.copytree(about["features"], store)
    gone = about | {"features": str(images.parent / "gone")}
    write_hashed(own / kind, gone)
    other = shutil.copytree(store, images.parent / "other")
    write_hashed(other / "manifest.json", read_json(other / "manifest.json") | {"key": "another"})
    before = (own / kind).read_bytes()
    _, err = printed(capsys, "relink", "--run", own, "--features", other, code=2)
    assert f"`{other}` has other features than those that `{own}` was trained on" in err
    assert f"that of `{gone['features']}` was {about['features_key']}" in err
    assert (own / kind).read_bytes() == before
    line = f"relink --run {shlex.quote(str(own))} --features"
    if kind == "run.json":
        _, err = printed(capsys, "export", "--run", own, "--out", images.parent / "out", code=2)
        assert f"type `cliptune {line} NEW_PLACE`" in err
    printed(capsys, *shlex.split(line), store.parent)
    assert read_json(own / kind)["features"] == str(store)
    if kind == "run.json":
        out, _ = printed(capsys, "search", "red", "--run", own, "--images", images, "--json")
        assert len(json.loads(out)["queries"]) == 1


def test_an_edited_run_says_how_to_name_its_store(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = images.parent / "own"
    shutil.copytree(home / "soft", own)
    about = json.loads((own / "run.json").read_text())
    (own / "run.json").write_text(json.dumps(about | {"features": "/elsewhere"}))
    for words in (
        ("search", "red", "--images", images),
        ("evaluate",),
        ("relink", "--features", home),
    ):
        _, err = printed(capsys, *words, "--run", own, code=2)
        assert f"`{own / 'run.json'}` was altered since it was written. Restore it." in err
        assert f"is said by `cliptune relink --run {own} --features NEW_PLACE`" in err


def shares(
    adapter: Adapter[Any], classes: Classes, paths: Sequence[Path], scale: float | None = None
) -> Tensor:
    """softmax(scale * score), by default at the adapter's own: (N, C)."""
    return ((scale or adapter.tau) * scores_of(adapter, classes, paths)).softmax(1)


def scores_of(adapter: Adapter[Any], classes: Classes, paths: Sequence[Path]) -> Tensor:
    """(N, C)."""
    backbone = adapter.backbone
    with torch.no_grad():
        tokens = classes.tokens(backbone, adapter.class_words, adapter.added_tokens)
        frozen = classes.text_embeds(backbone, adapter.frozen_words)
        classify = adapter.classifier(tokens, frozen)
        return classify(embed_images(backbone, pixels_of(backbone, paths)), None)


def check_classes(
    rows: list[Found], paths: Sequence[Path], wanted: Tensor, names: Any, word: str = "softmax"
) -> None:
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for row, share in zip(rows, wanted, strict=True):
        found = {one["name"]: one[word] for one in row["classes"]}
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert found == pytest.approx(dict(zip(names, share.tolist(), strict=True)), abs=1e-6)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("run", ["coop", "cocoop", "csc"])
def test_classify_gives_the_probabilities_of_the_runs_own_classes(
    home: Path, images: Path, backbone: Backbone, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = load_adapter(home / run / "best", backbone)
    assert adapter.classes is not None
    rows = as_json(capsys, "classify", images, "--run", home / run, "--top", 99)
    assert adapter.calibration is not None
    wanted = shares(adapter, adapter.classes, files_of(images), adapter.calibration.scale)
    check_classes(rows, files_of(images), wanted, adapter.classes.names, "probability")
    three = as_json(capsys, "classify", images, "--run", home / run)
    assert three == [row | {"classes": row["classes"][:3]} for row in rows]


@pytest.mark.parametrize("template", ["", "a photo of a {}"])
def test_classify_among_other_classes(
    home: Path,
    images: Path,
    clip: Path,
    backbone: Backbone,
    template: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names, paths = ("dog", "cat", "house"), files_of(images)[:4]
    given = ("--classes", *names, "--top", 3, *(("--template", template) if template else ()))
    for run, default in (("coop", "a {}."), ("soft", "a photo of a {}.")):
        adapter = load_adapter(home / run / "best", backbone)
        rows = as_json(capsys, "classify", *paths, "--run", home / run, *given)
        wanted = shares(adapter, Classes(names, template or default), paths)
        check_classes(rows, paths, wanted, names)
    rows = as_json(capsys, "classify", *paths, "--backbone", clip, *given)
    with torch.no_grad():
        texts = [(template or "a photo of a {}.").format(name) for name in names]
        words = F.normalize(embed_text(backbone, backbone.tokenize(texts)[0]), dim=1)
        tower = F.normalize(embed_images(backbone, pixels_of(backbone, paths)), dim=1)
    check_classes(rows, paths, (backbone.scale * tower @ words.T).softmax(1), names)


@pytest.mark.parametrize("kind", ["split", "adaptive"])
def test_classify_at_a_confidence_gives_the_sets_of_val(
    home: Path, images: Path, backbone: Backbone, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = load_adapter(home / "coop" / "best", backbone)
    found = adapter.calibration
    assert found is not None
    assert adapter.classes is not None
    words = ("classify", images, "--run", home / "coop", "--confidence", 0.6, "--sets", kind)
    rows = as_json(capsys, *words)
    scores = scores_of(adapter, adapter.classes, files_of(images))
    strange = 0
    for row, inside in zip(rows, found.sets(scores, 0.6, kind), strict=True):
        own = {adapter.classes.names[n] for n in inside.nonzero()[:, 0].tolist()}
        if row["none"] == UNLIKE:
            strange += 1
            assert row["set"] == [] == sorted(own)
        else:
            assert set(row["set"]) == own
            assert row["none"] == ("" if own else UNLIKELY)
    assert strange < len(rows)
    out, _ = printed(capsys, *words)
    lines = out.splitlines()
    for line, row in zip(lines, rows, strict=False):
        best = row["classes"][0]
        said = f"none of these: {row['none']} (nearest" if row["none"] else "{" + row["set"][0]
        assert line.startswith(f"{row['path']}  {said}")
        assert f"{best['name']} {best['probability']:.3f}" in line
    assert lines[len(rows)] == (
        "The sets hold the right class for at least 60 % of images like the 12 of val "
        f"({kind} conformal sets). That allows for one in 13 such images, which is taken for "
        "unlike val."
    )


def test_few_val_images_leave_every_class_in(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("classify", images, "--run", home / "coop", "--confidence", 0.95)
    assert all(len(row["set"]) == 6 for row in as_json(capsys, *words))
    out, _ = printed(capsys, *words)
    assert "None can leave a class out: that takes 19 val images." in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--run", "soft", "--classes", "dog", "cat"], "`--confidence` needs val images of the"),
        (["--run", "coop", "--classes", "dog", "cat"], "`--confidence` needs val images of the"),
        (["--run", "coop", "--sets", "class-wise"], "need 9 val images of each class, got 2 of"),
        (["--run", "coop", "--confidence", "1"], "must be from 0.5 to below 1, got 1."),
        (["--run", "coop", "--confidence", "nan"], "`--confidence` must be a number, got nan."),
    ],
)
def test_sets_that_cannot_be_promised_are_refused(
    home: Path, images: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--confidence", "0.9", "--run", str(home / words[1]), *words[2:]]
    if "--confidence" in words:
        given = given[2:]
    _, err = printed(capsys, "classify", images, *given, code=2)
    assert reason in err


def test_a_kind_of_sets_without_a_confidence_is_refused(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("classify", images, "--run", home / "coop", "--sets", "adaptive")
    _, err = printed(capsys, *words, code=2)
    assert "`--sets` is how the sets of `--confidence` are made: give both." in err


def test_a_run_of_an_older_version_is_calibrated_when_it_is_used(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = images.parent / "old"
    shutil.copytree(home / "coop", old)
    (old / "best" / "calibration.safetensors").unlink()
    manifest = read_json(old / "best" / "manifest.json")
    del manifest["sha256"], manifest["files"]["calibration.safetensors"]
    write_json(old / "best" / "manifest.json", manifest | {"sha256": sha256_json(manifest)})
    rows = as_json(capsys, "classify", images, "--run", old, "--confidence", 0.6)
    wanted = as_json(capsys, "classify", images, "--run", home / "coop", "--confidence", 0.6)
    assert [row["set"] for row in rows] == [row["set"] for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        for one, same in zip(row["classes"], other["classes"], strict=True):
            assert one["probability"] == pytest.approx(same["probability"], abs=1e-5)
    store = Path(shutil.copytree(read_json(old / "run.json")["features"], images.parent / "store"))
    (store / "val.safetensors").unlink()
    write_hashed(old / "run.json", read_json(old / "run.json") | {"features": str(store)})
    assert "no val calibrated them" in printed(capsys, "classify", images, "--run", old)[0]


def test_a_bad_file_ends_with_code_1_after_the_rest_is_done(
    home: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, missing = files_of(images)[0], images / "cut.jpg", images / "none.jpg"
    bad.write_bytes(picture(1)[:400])
    words = ("classify", bad, good, missing, "--run", home / "coop")
    out, err = printed(capsys, *words, "--top", 1, code=1)
    line, meaning, then = out.splitlines()
    assert meaning.startswith("The numbers are probabilities, calibrated on 12 val images")
    assert re.fullmatch(re.escape(str(good)) + r"  \w+ car 0\.\d{3}", line)
    assert then == f"next: cliptune evaluate --run {home / 'coop'}"
    assert err == (f"warning: `{bad}`: truncated JPEG\nwarning: `{missing}`: missing file\n")
    rows = as_json(capsys, *words, code=1)
    assert [row["path"] for row in rows] == [str(path) for path in (good, bad, missing)]
    assert rows[1:] == [
        {"path": str(bad), "error": "truncated JPEG"},
        {"path": str(missing), "error": "missing file"},
    ]


def test_files_are_each_found_once_in_the_order_given(images: Path) -> None:
    (images / "circle").symlink_to(images)
    unclear = images / os.fsdecode(b"\xff.jpg")
    unclear.write_bytes(picture(0))
    faults, paths = Faults(), files_of(images)
    found = find([paths[3], images, images / "notes.txt"], faults)
    assert found[0] == paths[3]
    assert found[-1] == images / "notes.txt"
    assert sorted(found) == sorted([*paths, images / "notes.txt"])
    assert images / "notes.txt" in find([images], Faults(), frozenset({".txt"}))
    assert faults.as_json() == [{"path": f"{images}/\\xff.jpg", "error": "its name is not UTF-8"}]


def test_a_query_that_is_too_long_is_cut_and_told(
    home: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = load_adapter(home / "projection" / "best", backbone)
    words = ["red " * 200, "red dog"]
    embeds = embed_words(adapter, words)
    torch.testing.assert_close(embeds, texts_of(adapter, words))
    told = "warning: 1 of the queries have more than 77 tokens and are cut\n"
    assert capsys.readouterr().err == told


class Captioner(NearestCaption):
    """Says which of its inputs it saw: the mean of the image's embedding, the number of frames."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(make_config("nearest_caption", {"task": "captioning"}), backbone)

    def captions(self, images: Tensor, frames: Tensor | None = None) -> list[str]:
        if frames is None:
            return [f"still {row.sum():.4f}" for row in images]
        torch.testing.assert_close(frames.mean(1), images)
        return [f"{len(row)} frames {row.sum(1).tolist()}" for row in frames]


class Clip:
    """A file of `mp4 <seconds>`; frame n is grey level n."""

    def __init__(self, duration: float) -> None:
        self.duration = duration

    @classmethod
    def open(cls, path: Path) -> Clip:
        data = path.read_bytes()
        if data.startswith(b"GIF8"):
            return cls(2)
        if not data.startswith(b"mp4 "):
            raise BadImage("corrupt video")
        return cls(float(data[4:]))

    def frames(self, numbers: Sequence[int]) -> list[Tensor]:
        return [torch.full((3, 40, 50), number, dtype=torch.uint8) for number in numbers]


def sample(clip: Clip, n: int, rule: str, span: tuple[float, float]) -> list[int]:
    """A frame a second; `motion` begins one later."""
    start, stop = span
    middles = [start + (stop - start) * (k + 0.5) / n for k in range(n)]
    return [int(middle) + (rule == "motion") for middle in middles]


@torch.no_grad()
def embed_clip(
    backbone: Backbone, clip: Clip, count: int, rule: str, span: tuple[float, float]
) -> Tensor:
    pixels = [backbone.preprocess.apply(f) for f in clip.frames(sample(clip, count, rule, span))]
    return embed_images(backbone, torch.stack(pixels))


def segments(clip: Clip, seconds: float) -> list[tuple[float, float]]:
    parts = max(1, int(clip.duration / seconds + 0.5))
    ends = [seconds * (k + 1) for k in range(parts - 1)]
    return list(zip([0.0, *ends], [*ends, clip.duration], strict=True))


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "Clip", Clip)
    monkeypatch.setattr(captions, "segments", segments)
    monkeypatch.setattr(captions, "embed_clip", embed_clip)


def captioner(backbone: Backbone, frames: int, rule: Rule = "uniform") -> Model:
    adapter: Any = Captioner(backbone)
    return Model("stand-in", adapter, "key", "key", None, Frames(frames, rule))


def grey(backbone: Backbone, *levels: int) -> list[float]:
    """The sums of the tower's outputs for frames of these grey levels."""
    size = backbone.preprocess.size
    pixels = [torch.full((3, size, size), level, dtype=torch.uint8) for level in levels]
    with torch.no_grad():
        return embed_images(backbone, torch.stack(pixels)).sum(1).tolist()  # type: ignore[no-any-return]


@pytest.mark.usefixtures("clips")
def test_captions_of_stills_in_the_order_given(images: Path, backbone: Backbone) -> None:
    paths = [files_of(images)[n] for n in (4, 1, 7)]
    faults = Faults()
    rows = captions.caption_files(captioner(backbone, 0), paths, 5, faults)
    with torch.no_grad():
        sums = embed_images(backbone, pixels_of(backbone, paths)).sum(1).tolist()
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for row, total in zip(rows, sums, strict=True):
        assert float(row["caption"].removeprefix("still ")) == pytest.approx(total, abs=1e-3)
    rows = captions.caption_files(captioner(backbone, 3), paths[:1], 5, faults)
    said = json.loads(rows[0]["caption"].removeprefix("3 frames "))
    assert said == pytest.approx([sums[0]] * 3, abs=1e-3)
    assert faults.reasons == {}


def test_folders_of_frames_in_the_order_given(
    images: Path, tmp_path: Path, backbone: Backbone
) -> None:
    first, last = files_of(images)[:2]
    folder, faults = films.folder(tmp_path / "frames", films.plain([RED, RED, BLUE])), Faults()
    unprintable = tmp_path / os.fsdecode(b"frames\xff")
    unprintable.mkdir()
    given = [first, folder, last, unprintable]
    rows = captions.caption_files(captioner(backbone, 2), given, 5, faults, frames=True)
    assert [row["path"] for row in rows] == [str(path) for path in given[:3]]
    assert faults.reasons == {unprintable: "its name is not UTF-8"}


@pytest.mark.usefixtures("clips")
@pytest.mark.parametrize(("sampling", "later"), [("uniform", 0), ("motion", 1)])
def test_captions_of_clips_by_segment(
    tmp_path: Path, backbone: Backbone, sampling: Rule, later: int
) -> None:
    (tmp_path / "short.mp4").write_text("mp4 7")
    (tmp_path / "long.MP4").write_text("mp4 13")
    model, faults = captioner(backbone, 2, sampling), Faults()
    rows = captions.caption_files(model, [tmp_path], 5, faults)
    times = [(row["path"], row.get("start"), row.get("end")) for row in rows]
    long, short = str(tmp_path / "long.MP4"), str(tmp_path / "short.mp4")
    assert times == [(long, 0, 5), (long, 5, 10), (long, 10, 13), (short, None, None)]
    seen = [json.loads(row["caption"].removeprefix("2 frames ")) for row in rows]
    numbers = [(1, 3), (6, 8), (10, 12), (1, 5)]
    for given, (one, two) in zip(seen, numbers, strict=True):
        assert given == pytest.approx(grey(backbone, one + later, two + later), abs=1e-3)
    rows = captions.caption_files(captioner(backbone, 0), [tmp_path / "short.mp4"], 5, faults)
    value = float(rows[0]["caption"].removeprefix("still "))  # of the middle frame
    assert value == pytest.approx(grey(backbone, 3)[0], abs=1e-3)


@pytest.mark.usefixtures("clips")
def test_caption_says_one_line_a_file(
    images: Path,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def opened(source: Source, *tasks: str) -> Model:
        asked.append((source.run, tasks))
        return captioner(backbone, 0)

    monkeypatch.setattr(using, "open_model", opened)
    moving, bad, still = images / "moving.gif", images / "bad.mp4", files_of(images)[0]
    shots = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = BytesIO()
    shots[0].save(buffer, "GIF", save_all=True, append_images=shots[1:], loop=0)
    moving.write_bytes(buffer.getvalue())
    (images / "long.mp4").write_text("mp4 9")
    bad.write_text("no video")
    words = ("caption", moving, bad, images / "long.mp4", still, "--run", "runs/x")
    out, err = printed(capsys, *words, code=1)
    assert err == f"warning: `{bad}`: corrupt video\n"
    pattern = (
        rf"{moving}  still \S+\n{images}/long.mp4  0.0 to 5.0 s  still \S+\n"
        rf"{images}/long.mp4  5.0 to 9.0 s  still \S+\n{still}  still \S+\n"
        r"next: cliptune evaluate --run runs/x\n"
    )
    assert re.fullmatch(pattern, out)
    rows = as_json(capsys, *words, code=1)
    assert [row.get("start") for row in rows] == [None, 0, 5, None, None]
    assert rows[-1] == {"path": str(bad), "error": "corrupt video"}
    assert asked == [(Path("runs/x"), ("captioning",))] * 2


def test_a_run_is_used_as_its_store_was_made(
    home: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(Source(home / "soft"), "retrieval")
    assert (model.seen, model.classes) == (Frames(0), None)
    bare = open_model(Source(None, str(clip)), "retrieval")
    assert bare.identity != model.identity
    assert open_model(Source(None, str(clip)), "retrieval").identity == bare.identity
    monkeypatch.setattr(using, "decoder_versions", lambda: {"pillow": "0"})
    assert open_model(Source(home / "soft"), "retrieval").identity != model.identity
    path = home / "store" / "manifest.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"frames": 8, "sampling": "motion"}))
    moving = open_model(Source(home / "soft"), "retrieval")
    path.write_text(text)
    assert moving.seen == Frames(8, "motion")
    with pytest.raises(ConfigError, match="`--run` or `--backbone` must name the model"):
        Source()
