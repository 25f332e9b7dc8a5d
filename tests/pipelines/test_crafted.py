"""Files that nobody of us wrote, as every reader meets them: one sentence, no traceback."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from pipelines.cli import STAGES
from pipelines.encode import store as encoding
from pipelines.encode.args import Args
from pipelines.encode.store import encode
from tests import ROOT
from tests.pipelines.encode.test_encode import InProcess
from tests.pipelines.test_foreign import files
from tests.things import in_this_process, picture, things
from trainables.files import read_json, sha256_file, sha256_json, write_hashed, write_json

FEW = ("--set", "epochs=1", "batch_size=4", "precision=fp32")
BASE = ("--base", "openai/clip-vit-base-patch32", "--base-revision", "0" * 40)
World = dict[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[World]:
    """Shards, a store, a draw, images, a run of captions and one of classes, and a study."""
    home = tmp_path_factory.mktemp("crafted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "embed_units", InProcess())
        shards = things(home / "shards")
        store = encode(Args(shards, str(clip), out=home / "out"))[0]
        draw, words, classes = home / "draw.json", home / "words", home / "classes"
        assert in_this_process("draw", "--shards", shards, "--shots", 2, "--out", draw) == 0
        assert in_this_process("train", "--features", store, "--out", words, *FEW) == 0
        own = ("--draw", draw, "--adapter", "coop", *FEW)
        assert in_this_process("train", "--features", store, "--out", classes, *own) == 0
        (home / "images").mkdir()
        (home / "images" / "0.png").write_bytes(picture(0, 0))
        study = home / "study"
        shutil.copytree(words, study / "trials" / "0000")
        entry = {"trial": 0, "adapter": "soft_prompt", "value": 0.5, "path": "trials/0000"}
        best = {**entry, "metric": "val/t2i_r1", "per_adapter": {"soft_prompt": entry}}
        write_hashed(study / "best.json", best)
        write_hashed(study / "study.json", read_json(words / "run.json") | {"adapters": []})
        for run in (words, classes, study):
            assert in_this_process("evaluate", "--run", run, "--bootstrap", 100) == 0
        yield {
            **{"shards": shards, "store": store, "draw": draw, "words": words, "clip": clip},
            **{"classes": classes, "images": home / "images", "study": study},
        }


def readers(kind: str, world: World, own: Path, new: Path) -> list[tuple[object, ...]]:
    """The commands that meet what is damaged, of which `own` is a copy."""
    run: list[tuple[object, ...]] = [
        ("evaluate", "--run", own, "--bootstrap", 100),
        ("export", "--run", own, "--out", new),
        ("push", "--run", own, "--out", new, "--repo", "a/b", "--license", "mit", *BASE),
        ("sweep", "--run", own, "--shares", 0.5),
        ("explain", "--run", own, "--draws", 1),
    ]
    look = [("search", "cat", "--images", world["images"], "--run", own)]
    return {
        "study": [*run, *look, ("report", "--run", own)],
        "words": [*run, *look],
        "classes": [*run, ("classify", world["images"], "--run", own)],
        "result": [("report", "--run", own)],
        "store": [
            ("train", "--features", own, "--out", new, *FEW),
            ("tune", "--features", own, "--out", new, "--trials", 1),
        ],
        "shards": [
            ("draw", "--shards", own, "--shots", 2, "--out", new),
            ("encode", "--shards", own, "--backbone", world["clip"], "--out", new),
        ],
        "draw": [
            ("train", "--features", world["store"], "--draw", own, "--out", new),
            ("tune", "--features", world["store"], "--draw", own, "--out", new, "--trials", 1),
        ],
        "schedule": [("train", "--features", world["store"], "--schedule", own, "--out", new)],
        "arena": [("evaluate", "--run", own)],
    }[kind]


SHAPES: dict[str, bytes] = {
    **{"empty": b"", "cut": b'{"format": "clipt', "list": b"[]", "number": b"7", "null": b"null"},
    **{"object": b"{}", "deep": b"[" * 100_000, "binary": b"\xff\xfe\x00"},
}
FILES = {
    "study": ("study.json", "best.json"),
    "words": ("run.json", "config.json", "best/manifest.json"),
    "result": ("result.json",),
    **{"store": ("manifest.json",), "shards": ("manifest.json",), "draw": ("",)},
    **{"schedule": ("schedule.json",), "arena": ("plan.json",)},
}
FIELDS: dict[tuple[str, str], dict[str, tuple[Any, ...]]] = {
    ("study", "study.json"): {
        **{"features": (None, 7), "metric": ("x", []), "task": ({}, 10**400), "adapters": (7, [1])},
    },
    ("study", "best.json"): {
        **{"per_adapter": ([], {"lora": None}), "path": (None, "/etc"), "adapter": (None, "x", [])},
        "trial": (...,),
    },
    ("words", "run.json"): {"features": (...,), "share": ("x",), "retain": (7, ["x"])},
    ("words", "config.json"): {"name": (..., []), "epochs": ("x", 1e400)},
    ("words", "best/manifest.json"): {"files": ([], 7), "backbone": (..., "x"), "precision": (7,)},
    ("classes", "run.json"): {"draw": (..., 7), "draw_key": (..., None)},
    ("result", "result.json"): {
        **{"rows": (None, [7]), "metric": ("x",), "seconds": ("x",), "versions": (None,)},
        **{"backbone": (7,), "protocol": (7,), "data": ([],)},
    },
    ("store", "manifest.json"): {"splits": ([], {"train": 7}), "backbone": ({}, 7), "key": (7,)},
    ("shards", "manifest.json"): {
        **{"shards": ([7], [{}]), "splits": ([], {"train": 7}), "classes": (7,), "notes": (7,)},
    },
    ("draw", ""): {"template": (None,), "shards_sha256": (None,), "names": (7,), "train": ([7],)},
}
CASES = [(kind, name, shape) for kind, names in FILES.items() for name in names for shape in SHAPES]
CASES += [
    (kind, name, f"{field}={number}")
    for (kind, name), fields in FIELDS.items()
    for field, values in fields.items()
    for number in range(len(values))
]


def spoil(path: Path, kind: str, name: str, how: str) -> None:
    """Put what was crafted in the place of a file; where its hash stands in it, that is right."""
    if how in SHAPES:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SHAPES[how])
        return
    field, _, number = how.partition("=")
    value = FIELDS[kind, name][field][int(number)]
    found = read_json(path)
    hashed = found.pop("sha256", None)
    if value is ...:
        del found[field]
    else:
        found[field] = value
    path.write_text(json.dumps(found | ({"sha256": sha256_json(found)} if hashed else {})))


@pytest.mark.parametrize(("kind", "name", "how"), CASES)
def test_a_crafted_file_is_one_sentence_for_all_who_read_it(
    world: World,
    tmp_path: Path,
    kind: str,
    name: str,
    how: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source, own = world.get("study" if kind == "result" else kind), tmp_path / "own"
    if source is not None:
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, own)  # type: ignore[operator]
    path = own / name if kind != "schedule" else own
    spoil(path, kind, name, how)
    refused = 0
    for words in readers(kind, world, own, tmp_path / "new"):
        capsys.readouterr()
        before = (own / "test_openings.jsonl").read_bytes() if kind == "words" else b""
        code, said = in_this_process(*words), capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) in ((2, 1), (0, 0)), (words[0], said)  # not all read all of it
        refused += code == 2
        if kind == "words":
            assert (own / "test_openings.jsonl").read_bytes() == before
    assert refused


LINKS = [
    *[("study", name) for name in ("best.json", "study.json", "result.json", "trials")],
    *[("study", name) for name in ("trials/0000", "trials/0000/metrics.jsonl")],
    *[("words", name) for name in ("run.json", "test_openings.jsonl", "journal.log")],
]


@pytest.mark.parametrize(("kind", "name"), LINKS)
def test_no_reader_follows_a_link_out_of_a_run(
    world: World, tmp_path: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own, away = Path(shutil.copytree(world[kind], tmp_path / "own")), tmp_path / "away"
    path = own / name
    path.rename(away) if path.exists() else away.write_text("{}")
    path.symlink_to(away)
    before = files(away) if away.is_dir() else away.read_bytes()
    holders: dict[str, list[tuple[object, ...]]] = {
        "words": [("train", "--features", world["store"], "--out", own, *FEW)],
        "study": [("tune", "--features", world["store"], "--out", own, "--trials", 2)],
    }
    for words in (*readers(kind, world, own, tmp_path / "new"), *holders[kind]):
        capsys.readouterr()
        code, said = in_this_process(*words), capsys.readouterr().err
        assert code == 2, (words[0], said)
        rule = f"`{path}` is a symbolic link out of `{own}`, to `{away}`"
        assert f"error: {rule}: what a run found lies in its own folder. Put a copy in" in said
    assert (files(away) if away.is_dir() else away.read_bytes()) == before


def test_a_link_within_a_run_and_one_to_it_are_followed(world: World, tmp_path: Path) -> None:
    own = Path(shutil.copytree(world["study"], tmp_path / "own"))
    (own / "trials" / "0000").rename(own / "trials" / "winner")
    (own / "trials" / "0000").symlink_to("winner")
    (own / "journal.log.lock").symlink_to("journal.log")
    (own / "notes").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(own)
    assert in_this_process("sweep", "--run", tmp_path / "link", "--shares", 0.5) == 0


def signed(best: Path, name: str, data: bytes) -> None:
    """A file of a checkpoint by somebody who also knows the manifest."""
    (best / name).write_bytes(data)
    manifest = read_json(best / "manifest.json")
    del manifest["sha256"]
    manifest["files"][name] = sha256_file(best / name)
    write_json(best / "manifest.json", manifest | {"sha256": sha256_json(manifest)})


def tensors(how: str, stored: dict[str, torch.Tensor]) -> bytes:
    name = max(stored, key=lambda one: stored[one].numel())
    if how == "huge header":
        return (2**62).to_bytes(8, "little") + b"{}"
    if how == "whole numbers":
        return save({key: tensor.long() for key, tensor in stored.items()})
    if how == "other names":
        return save({"other": torch.zeros(2)})
    if how == "other shape":
        return save(stored | {name: torch.zeros(1)})
    stored[name].view(-1)[0] = float(how)
    return save(stored)


@pytest.mark.parametrize("kind", ["words", "classes"])
@pytest.mark.parametrize(
    "how",
    ["nan", "inf", "-inf", "whole numbers", "other names", "other shape", "huge header"],
)
def test_no_reader_takes_such_an_adapter_and_test_stays_closed(
    world: World, tmp_path: Path, kind: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(world[kind], tmp_path / "own"))
    (own / "result.json").unlink()
    log = (own / "test_openings.jsonl").read_bytes()
    path = own / "best" / "adapter.safetensors"
    signed(own / "best", path.name, tensors(how, load_file(path)))
    for words in readers(kind, world, own, tmp_path / "new"):
        capsys.readouterr()
        code, said = in_this_process(*words), capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), (words[0], said)
        assert str(own / "best") in errors[0]
    assert (own / "test_openings.jsonl").read_bytes() == log
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("train", "--features", "{shards}", "--out", "{new}"), "is not of the format"),
        (("encode", "--shards", "{store}", "--backbone", "{clip}"), "is not of the format"),
        (("draw", "--shards", "{store}", "--shots", 1), "is not of the format"),
        (("train", "--features", "{store}", "--out", "{draw}"), "{draw}"),
        (("tune", "--features", "{store}", "--out", "{draw}"), "{draw}"),
        (("encode", "--shards", "{shards}", "--backbone", "{clip}", "--out", "{draw}"), "{draw}"),
        (("export", "--run", "{words}", "--out", "{draw}"), "exists already"),
        (
            ("push", "--run", "{words}", "--out", "{draw}", "--repo", "a/b", "--license", "mit"),
            "exists already",
        ),
        (("tune", "--features", "{store}", "--concurrent", -1), "`--concurrent`"),
        (("tune", "--features", "{store}", "--epochs", 10**20), "`--epochs`"),
        (("search", "-x", "--images", "{images}", "--run", "{words}"), "as in `-- -x`"),
        (
            ("arena", "--data", ".={shards}", "--backbone", "{clip}"),
            "`--data` takes each NAME=VALUE",
        ),
        (("arena", "--data", "..={shards}", "--backbone", "{clip}"), "`--data` takes each NAME"),
        (("tune", "--features", "{store}", "--minutes", "nan"), "`--minutes` must be a number"),
        (("evaluate", "--run", "{words}", "--bootstrap", 10**20), "`--bootstrap`"),
    ],
)
def test_a_wrong_folder_or_number_is_one_sentence(
    world: World,
    tmp_path: Path,
    words: tuple[object, ...],
    rule: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = {name: str(path) for name, path in world.items()} | {"new": str(tmp_path / "new")}
    code = in_this_process(*(str(word).format(**names) for word in words))
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), said
    assert rule.format(**names) in errors[0]
    assert read_json(world["draw"])["format"] == "cliptune-draw-1"


def test_a_query_may_begin_with_a_dash(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--images", world["images"], "--run", world["words"], "--json")
    assert in_this_process("search", *own, "--", "-x", "--cat") == 0
    found = json.loads(capsys.readouterr().out)["queries"]
    assert [one["query"] for one in found] == ["-x", "--cat"]


def test_how_far_embedding_test_is_is_shown(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.evaluate.__main__.FEW", 0)
    own = Path(shutil.copytree(world["words"], tmp_path / "own"))
    (own / "result.json").unlink()
    assert in_this_process("evaluate", "--run", own, "--bootstrap", 100) == 0
    images = read_json(world["shards"] / "manifest.json")["splits"]["test"]["images"]
    assert f"embed: 100%|██████████| {images}/{images} [" in capsys.readouterr().err


MAKERS: dict[str, tuple[object, ...]] = {
    "shards": ("--source", "{source}", "--split", "train"),
    "draw": ("--shards", "{shards}", "--shots", 2),
    "encode": ("--shards", "{shards}", "--backbone", "{clip}"),
    "space": ("--adapter", "lora"),
    "tune": ("--features", "{store}", "--trials", 2),
    "train": ("--features", "{store}", *FEW),
    "arena": ("--data", "a={shards}", "--backbone", "{clip}", "--shots", 2, "--adapter", "coop"),
    "sweep": ("--run", "{words}", "--take", 0.5),
    "reproduce": ("--recipe", "{recipe}", "--shards", "eurosat={shards}", "--backbone", "{clip}"),
    "explain": ("--run", "{words}", "--draws", 1),
    "search": ("cat", "--images", "{images}", "--run", "{words}", "--index", "{index}"),
    "export": ("--run", "{classes}"),
    "push": ("--run", "{words}", "--repo", "somebody/words", "--license", "mit", *BASE),
    "demo": ("--adapter", "loar"),
}


@pytest.mark.parametrize("stage", MAKERS)
def test_after_an_error_no_folder_is_left_that_was_made_for_out(
    world: World,
    tmp_path: Path,
    stage: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk is full as soon as it is written to, where nothing is wrong before."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "posix_fallocate"):
        monkeypatch.setattr(os, name, full)
    source = tmp_path / "source"
    shutil.copytree(world["images"], source / "cat")
    (source / "dog").mkdir()
    recipe = ROOT / "recipes" / "coop-eurosat.json"
    names = {**world, "source": source, "recipe": recipe, "index": tmp_path / "index"}
    words = [str(word).format(**names) for word in MAKERS[stage]]
    out = tmp_path / "new" / "below" / "out"
    assert in_this_process(stage, *words, "--out", out) != 0
    said = capsys.readouterr().err
    before = {"demo": "unknown adapter `loar`", "export": "`coop` has no format of another library"}
    assert before.get(stage, "No space left") in said or "the disk is full" in said, said
    assert not out.exists()
    assert (tmp_path / "new").exists() == (stage == "shards")  # its list of bad records stays


def test_every_stage_with_out_is_among_them() -> None:
    stages = {one: importlib.import_module(f"pipelines.{one}.__main__").Args for one in STAGES}
    out = {one for one, args in stages.items() if "out" in {f.name for f in fields(args)}}
    assert out == {*MAKERS}
