"""What the engine answers, against the commands that do the same from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import cliptune
from pipelines.cli import stage_main
from pipelines.search import graph
from pipelines.serve import fields
from pipelines.serve.asks import Ask, Refused
from pipelines.serve.deploy import Plan
from pipelines.serve.engine import Engine
from pipelines.serve.gallery import Photos, Stored
from pipelines.serve.shelf import load_shelf, loads_once
from pipelines.use.model import Source, open_model
from pipelines.use.queries import embed_words
from tests.pipelines.serve.conftest import PHOTOS, name_of
from tests.tiny import caption, picture
from trainables.errors import CliptuneError

FINDERS = ("zero_shot", "soft", "projection", "lora")


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    stage_main(str(words[0]), [*map(str, words[1:]), "--json"])
    return json.loads(capsys.readouterr().out)


def names(answer: Any) -> list[str]:
    assert not isinstance(answer, Refused), answer
    return [match["name"] for match in answer["matches"]]


@pytest.mark.parametrize("adapter", FINDERS)
def test_it_finds_what_the_command_finds(
    adapter: str,
    home: Path,
    clip: Path,
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = ("--run", home / "runs" / adapter) if adapter != "zero_shot" else ("--backbone", clip)
    query = ("search", caption(3), "--images", home / "photos", "--top", 5)
    (asked,) = told(capsys, *query, "--index", tmp_path / "index", *source)["queries"]
    (answer,) = engine.answer([Ask("search", adapter, (caption(3),), top=5)])
    assert names(answer) == [
        str(Path(one["path"]).relative_to(home / "photos")) for one in asked["matches"]
    ]
    found = [match["cosine"] for match in answer["matches"]]
    assert found == pytest.approx([one["cosine"] for one in asked["matches"]], abs=1e-6)


def test_classes_and_captions_are_the_commands_own(
    home: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "photos" / name_of(0)
    few = ("classify", path, "--run", home / "runs/few", "--top", 2, "--confidence", 0.6)
    (row,) = told(capsys, *few)
    (line,) = told(capsys, "caption", path, "--run", home / "runs/words")
    (own,) = told(capsys, "classify", path, "--run", home / "runs/soft", "--classes", "dog", "cat")
    image = path.read_bytes()
    classes, said, other = engine.answer(
        [
            Ask("classify", "few", image=image, top=2, confidence=0.6),
            Ask("caption", "words", image=image),
            Ask("classify", "soft", image=image, classes=("dog", "cat")),
        ]
    )
    assert classes == {"adapter": "few"} | {key: row[key] for key in ("classes", "set", "none")}
    assert said == {"adapter": "words", "caption": line["caption"]}
    assert other == {"adapter": "soft", "classes": own["classes"]}


def test_a_batch_is_answered_as_each_alone(home: Path, engine: Engine) -> None:
    """To the rounding of another batch size; those first whose updates are inside the towers."""
    images = [picture(n) for n in (3, 70, 71)]
    asks = [
        *(Ask("search", name, (caption(n),), top=n + 1) for name in FINDERS for n in (1, 2)),
        *(Ask("search", name, image=image, top=3) for name in FINDERS for image in images),
        *(Ask("search", "lora", like=name_of(n), top=4) for n in (1, 5)),
        *(Ask("embed", name, (caption(4), caption(5))) for name in FINDERS),
        *(Ask("classify", "few", image=image) for image in images),
        Ask("search", "soft", (caption(1),), where={"town": "Rome"}),
        Ask("search", "soft", image=images[0], where={"year": {"to": 2003}}),
        Ask("caption", "words", image=images[1]),
        Ask("embed", "projection", image=images[2]),
    ]
    order = sorted(range(len(asks)), key=lambda n: asks[n].adapter != "lora")
    together = dict(zip(order, engine.answer([asks[n] for n in order]), strict=True))
    for n, ask in enumerate(asks):
        (alone,) = engine.answer([ask])
        same(together[n], alone)


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            same(mine, its)
    else:
        assert one == (pytest.approx(other, abs=1e-5) if isinstance(one, float) else other)


def test_embeddings_are_the_adapters_own(home: Path, engine: Engine) -> None:
    words = [caption(1), "a red dog"]
    (answer,) = engine.answer([Ask("embed", "soft", tuple(words))])
    assert not isinstance(answer, Refused)
    model = open_model(Source(home / "runs/soft"), "retrieval")
    expected = embed_words(model.adapter, words)
    assert torch.allclose(torch.tensor(answer["embeddings"]), expected, atol=1e-6)
    assert torch.allclose(expected.norm(dim=1), torch.ones(2))


def test_an_image_finds_itself_and_one_that_is_there_finds_the_others(engine: Engine) -> None:
    sent, like = engine.answer(
        [
            Ask("search", "projection", image=picture(4), top=PHOTOS),
            Ask("search", "projection", like=name_of(4), top=PHOTOS),
        ]
    )
    assert names(sent)[0] == name_of(4)
    assert names(like) == names(sent)[1:]


def test_adapters_that_leave_images_alone_share_the_index(home: Path, engine: Engine) -> None:
    shelf = engine.shelf
    assert shelf["soft"].index is shelf["zero_shot"].index
    assert shelf["lora"].index is not shelf["zero_shot"].index
    kept = {path.name for path in (home / "index").iterdir()}
    assert kept == {shelf[name].model.sees for name in ("soft", "projection", "lora")}


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ({"town": "Rome"}, lambda n: n % 2 == 0 and n < PHOTOS - 1),
        ({"town": ["Oslo", "Rome"]}, lambda n: n < PHOTOS - 1),
        ({"year": {"from": 2002, "to": 2004}}, lambda n: 2 <= n <= 4),
        ({"year": {"from": 2002.5}}, lambda n: 3 <= n < PHOTOS - 1),
        ({"year": 2005}, lambda n: n == 5),
        ({"wet": True, "folder": "a"}, lambda n: n < 4 and n % 2 == 0),
        ({"town": "Paris"}, lambda n: False),
    ],
)
def test_filters(where: dict[str, Any], left: Any, engine: Engine) -> None:
    (answer,) = engine.answer([Ask("search", "soft", (caption(1),), top=99, where=where)])
    assert sorted(names(answer)) == sorted(name_of(n) for n in range(PHOTOS) if left(n))
    (every,) = engine.answer([Ask("search", "soft", (caption(1),), top=99)])
    assert names(answer) == [name for name in names(every) if name in names(answer)]


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (Ask("search", "sofd", ("x",)), "Did you mean `soft`?"),
        (Ask("search", "few", ("x",)), "`few` is an adapter of classification; one of retrieval"),
        (Ask("caption", "soft", image=picture(1)), "writes captions: `words`."),
        (Ask("classify", "soft", image=picture(1)), "`classes` must name"),
        (Ask("classify", "words", image=picture(1)), "`words` is an adapter of captioning"),
        (Ask("search", "soft", image=b"words"), "the image cannot be taken: not an image"),
        (Ask("search", "soft", like="../x"), "no image is called `../x`."),
        (Ask("search", "soft", ("x",), where={"twon": "Rome"}), "Did you mean `town`?"),
        (Ask("search", "soft", ("x",), where={"year": "2001"}), "`year` is of int64"),
        (Ask("search", "soft", ("x",), where={"town": 3}), "`town` is of string"),
        (Ask("search", "soft", ("x",), where={"year": {"above": 3}}), "`from` and `to`"),
        (Ask("search", "soft", ("x",), where={"year": None}), "cannot be None"),
        (Ask("classify", "few", image=picture(1), confidence=0.2), "must be from 0.5"),
    ],
)
def test_what_cannot_be_is_refused_and_the_others_are_answered(
    ask: Ask, sentence: str, engine: Engine
) -> None:
    good = Ask("search", "soft", (caption(1),))
    before, refused, after = engine.answer([good, ask, good])
    assert isinstance(refused, Refused)
    assert sentence in refused.error
    assert 400 <= refused.status < 500
    assert names(before) == names(after) != []


def test_new_runs_and_lost_ones(own: Path) -> None:
    load, gallery = loads_once(), Photos(own / "photos")
    (own / "runs/lora").rename(own / "later")
    first = load_shelf([own / "runs"], gallery, own / "index", load)
    assert list(first.adapters) == ["zero_shot", "few", "projection", "soft", "words"]
    (own / "later").rename(own / "runs/lora")
    (own / "runs/words").rename(own / "gone")
    second = load_shelf([own / "runs"], gallery, own / "index", load)
    assert list(second.adapters) == ["zero_shot", "few", "lora", "projection", "soft"]
    assert second["soft"].model.backbone is first["soft"].model.backbone


def test_a_store_is_served_without_its_test_split(home: Path, engine: Engine) -> None:
    gallery = Stored(home / "store")
    assert len(gallery.names) == 18
    assert not any(name.startswith("test") for name in gallery.names)
    shelf = load_shelf([home / "runs/lora"], gallery, home / "other", loads_once())
    own = Engine(shelf, gallery)
    for adapter in ("zero_shot", "lora"):
        ask = Ask("embed", adapter, image=picture(3))
        same(*own.answer([ask]), *engine.answer([ask]))
    for n, name in ((0, "train-000"), (11, "train-011"), (12, "val-000"), (17, "val-005")):
        assert gallery.read(name) == picture(n)
        for adapter in ("zero_shot", "lora"):
            ask = Ask("search", adapter, image=picture(n), top=1, where={"split": name[:-4]})
            assert names(*own.answer([ask])) == [name]
    with pytest.raises(KeyError):
        gallery.read("test-000")


def test_finished_embeddings_are_searched_without_pictures(tmp_path: Path, clip: Path) -> None:
    import numpy as np
    import pandas as pd

    rows = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    (tmp_path / "given/img_emb").mkdir(parents=True)
    np.save(tmp_path / "given/img_emb/img_emb_0.npy", rows)
    (tmp_path / "given/metadata").mkdir()
    pd.DataFrame({"caption": [caption(n) for n in range(20)]}).to_parquet(
        tmp_path / "given/metadata/metadata_0.parquet"
    )
    store = cliptune.encode(embeddings=tmp_path / "given", backbone=clip, out=tmp_path / "store")
    cliptune.train(store, tmp_path / "run", adapter="soft_prompt", set={"epochs": 1})
    gallery = Stored(store)
    engine = Engine(load_shelf([tmp_path / "run"], gallery, tmp_path, loads_once()), gallery)
    (found,) = engine.answer([Ask("search", "run", (caption(2),), top=3)])
    assert len(names(found)) == 3
    with pytest.raises(CliptuneError, match="have no pictures"):
        gallery.read(names(found)[0])


def test_links_and_paths_out_of_the_folder(own: Path) -> None:
    outside = own / "secret.jpg"
    outside.write_bytes(picture(1))
    (own / "photos/link.jpg").symlink_to(outside)
    (own / "photos/circle.jpg").symlink_to(own / "photos/circle.jpg")
    gallery = Photos(own / "photos")
    assert "link.jpg" not in gallery.names
    for name in ("link.jpg", "../secret.jpg", str(outside), "a/../../secret.jpg", "metadata.csv"):
        with pytest.raises(KeyError):
            gallery.read(name)
    (own / "photos" / name_of(0)).unlink()
    (own / "photos" / name_of(0)).symlink_to(outside)
    with pytest.raises(CliptuneError, match="a link out of the folder"):
        gallery.read(name_of(0))


def test_an_image_that_cannot_be_read_is_left_out(own: Path) -> None:
    (own / "photos/a/broken.jpg").write_bytes(b"no image")
    gallery = Photos(own / "photos")
    shelf = load_shelf([own / "runs/soft"], gallery, own / "index", loads_once())
    engine = Engine(shelf, gallery)
    (every,) = engine.answer([Ask("search", "soft", ("x",), top=99)])
    (like,) = engine.answer([Ask("search", "soft", like="a/broken.jpg")])
    assert sorted(names(every)) == sorted(name_of(n) for n in range(PHOTOS))
    assert isinstance(like, Refused)
    assert "`a/broken.jpg` cannot be read" in like.error


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,year\na/0.jpg,1\n", "unknown column `file_name`"),
        ("file_name,year\nelse.jpg,1\n", "no `file_name` is of an image"),
        ("file_name,year\na/0.jpg,1\na/0.jpg,2\n", "must stand once"),
        ("", "metadata.csv` cannot be read"),
    ],
)
def test_metadata_that_cannot_be_meant(text: str, sentence: str, own: Path) -> None:
    (own / "photos/metadata.csv").write_text(text)
    with pytest.raises(CliptuneError, match=sentence):
        Photos(own / "photos")


def test_metadata_of_other_kinds(own: Path) -> None:
    table = Photos(own / "photos").fields.to_pandas()
    (own / "photos/metadata.csv").unlink()
    said = table.assign(file_name=Photos(own / "photos").names).drop(columns="folder").dropna()
    said["year"] = said["year"].astype(int)
    said.to_json(own / "photos/metadata.jsonl", orient="records", lines=True)
    assert Photos(own / "photos").fields.to_pandas().equals(table)
    (own / "photos/metadata.jsonl").unlink()
    said.to_parquet(own / "photos/metadata.parquet", index=False)
    found = Photos(own / "photos").fields.to_pandas()
    assert found.astype(object).equals(table.astype(object))
    said.assign(year=float("nan")).to_parquet(own / "photos/metadata.parquet", index=False)
    told = fields.row(Photos(own / "photos").fields, 0)
    assert json.dumps(told, allow_nan=False) == (
        '{"folder": "a", "year": null, "town": "Rome", "wet": true}'
    )


def test_a_refusal_tells_no_folder_of_the_machine(own: Path) -> None:
    plan = Plan((own / "runs",), None, own, own, "0.0.0.0", 8000)
    said = plan.outside(f"`{own}/runs/few/run.json`: `/else/where/x` is gone, `a/b` and `/` not.")
    assert said == "`runs/few/run.json`: `x` is gone, `a/b` and `/` not."


def test_runs_on_other_frozen_models_are_refused(own: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_clip, tiny_features

    other = tiny_clip(tmp_path / "other", seed=5)
    store = tiny_features(tmp_path / "features", clip=other)
    cliptune.train(store, own / "runs/stranger", adapter="soft_prompt", set={"epochs": 1})
    with pytest.raises(CliptuneError, match="runs on one frozen model and precision: `stranger`"):
        load_shelf([own / "runs"], Photos(own / "photos"), own / "i", loads_once())


@pytest.mark.parametrize("kind", ["photos", "store"])
def test_a_graph_beside_a_large_index(
    kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which in an index of a few images misses none."""
    pytest.importorskip("usearch", reason="`cliptune[approximate]` is not installed")
    for name, value in {"LEAST": 10, "REACH": 8, "NEAREST": 2, "QUERIES": 5}.items():
        monkeypatch.setattr(graph, name, value)
    gallery = Photos(home / "photos") if kind == "photos" else Stored(home / "store")
    load = loads_once()
    exact = Engine(load_shelf([home / "runs/soft"], gallery, tmp_path, load), gallery)
    shelf = load_shelf([home / "runs/soft"], gallery, tmp_path, load, approximate=True)
    ask = Ask("search", "soft", (caption(1),), top=2)
    same(*exact.answer([ask]), *Engine(shelf, gallery).answer([ask]))
    assert exact.shelf["soft"].about()["approximate"] is None
    told = shelf["soft"].about()["approximate"]
    assert told["nearest"] == 2
    assert told["images"]["queries"] == 5
    assert told.get("captions", {}).get("queries") == (5 if kind == "store" else None)
    assert len([*tmp_path.rglob("graph-*.usearch")]) == 1


def test_what_a_graph_needs_is_said_before_anything_is_embedded(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *more: None if name == "usearch" else found(name, *more)
    )
    run = ["--run", str(home / "runs"), "--images", str(home / "photos")]
    with pytest.raises(SystemExit):
        stage_main("serve", [*run, "--approximate"])
    assert "pip install 'cliptune[approximate]'" in capsys.readouterr().err
