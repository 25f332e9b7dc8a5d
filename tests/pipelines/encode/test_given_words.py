"""What is said of finished embeddings: what they are, what goes on from there, and that it does."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from pathlib import Path

import pytest
import tyro

from pipelines.arena import __main__ as arena
from pipelines.arena.flags import plan_of
from pipelines.arena.plan import store_of, write_plan
from pipelines.arena.tuning import Arena, CellSearch
from pipelines.cli import stage_main
from pipelines.train import __main__ as train
from pipelines.tune import __main__ as tune
from pipelines.tune import flags
from tests.pipelines.encode.test_given import NAMES, ROWS, TEMPLATES, save, table, vectors
from tests.tiny import tiny_clip
from trainables.errors import ConfigError

CLASSES = ["3 classes, such as: Football_Field", "texts: of every class, in 2 templates"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes in two templates, no splits."""
    folder = tmp_path / "given"
    rows = [{"key": f"{n:02}", "class_name": NAMES[n % 3]} for n in range(ROWS)]
    table(folder / "metadata/metadata_0.parquet", rows)
    save(folder / "img_emb/img_emb_0.npy", vectors(ROWS, 1))
    save(folder / "text_emb/text_emb_0.npy", vectors(6, 9))
    texts = [{"template": t, "class_name": n} for t in TEMPLATES for n in NAMES]
    table(folder / "text_metadata/text_metadata_0.parquet", texts)
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    capsys.readouterr()
    stage_main(str(words[0]), [str(word) for word in words[1:]])
    return capsys.readouterr().out.splitlines()


def encoded(capsys: pytest.CaptureFixture[str], folder: Path, *words: object) -> list[str]:
    out = folder.parent / "features"
    return said(capsys, "encode", "--embeddings", folder, "--out", out, *words)


def next_of(lines: list[str], stage: str) -> list[str]:
    """The words of the command that the last line gives, behind the stage's name."""
    words = shlex.split(lines[-1])
    assert words[:3] == ["next:", "cliptune", stage]
    return words[3:]


def check(words: list[str]) -> tuple[str, ...]:
    return flags.check(tyro.cli(tune.Args, args=words)).adapters


def test_the_way_from_classes_to_a_search(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    lines = encoded(capsys, folder, "--split", "draw")
    assert lines[:2] == [
        "60 vectors of width 16 in half precision, in 1 file",
        "pool         60 images",
    ]
    assert lines[2:4] == CLASSES
    again = encoded(capsys, folder, "--split", "draw")
    assert again[-1] == lines[-1]
    words = said(capsys, "draw", *next_of(lines, "draw"))
    assert {"gda", "tip_adapter"} < set(check(next_of(words, "tune")))


def _pairs(folder: Path) -> None:
    shutil.rmtree(folder / "text_metadata")
    shutil.rmtree(folder / "metadata")
    save(folder / "text_emb/text_emb_0.npy", vectors(ROWS, 2))


def test_the_way_from_pairs_to_a_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _pairs(folder)
    lines = encoded(capsys, folder)
    assert "texts: an embedding beside each image" in lines
    assert check(next_of(lines, "tune")) == ("zero_shot", "projection")


def test_captions_without_embeddings_are_for_captioners(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before any work; it was each trial's failure, one after the other."""
    _pairs(folder)
    shutil.rmtree(folder / "text_emb")
    rows = [{"key": n, "caption": f"a pond {n}"} for n in range(ROWS)]
    table(folder / "metadata/metadata_0.parquet", rows)
    lines = encoded(capsys, folder)
    assert any(line.startswith("texts: no embeddings of any;") for line in lines)
    words = next_of(lines, "tune")
    assert check(words) == ("prefix_captioner",)
    store = Path(words[1])
    for names in (("auto",), ("projection",)):
        with pytest.raises(ConfigError, match=r"has no embeddings of captions.*prefix_captioner`"):
            flags.check(tune.Args(store, adapter=names))
    with pytest.raises(ConfigError, match="has no embeddings of captions"):
        train.run(train.Args(store, folder.parent / "run", "projection"))


def test_texts_of_classes_are_not_for_retrieval(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = next_of(encoded(capsys, folder), "draw")[1]
    with pytest.raises(ConfigError, match="its texts are of classes, which need a `--draw`"):
        flags.check(tune.Args(Path(store), adapter=("projection",)))


def test_a_class_that_no_split_has_enough_of(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"class_name": NAMES[n % 3 if n < 6 else 0], "key": n} for n in range(ROWS)]
    table(folder / "metadata/metadata_0.parquet", rows)
    lines = encoded(capsys, folder)
    with pytest.raises(SystemExit):
        said(capsys, "draw", *next_of(lines, "draw"))
    assert "With `encode --split draw`, draws divide the rows." in capsys.readouterr().err


def test_a_draw_needs_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    _pairs(folder)
    with pytest.raises(SystemExit):
        stage_main("encode", ["--embeddings", str(folder), "--split", "draw", "--out", "none"])


def test_a_text_tower_needs_words(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It embedded "text 5" where text embeddings had come along without words."""
    clip = tiny_clip(tmp_path / "clip", joint=16)
    lines = encoded(capsys, folder, "--backbone", clip)
    assert "`--backbone` makes the embeddings of texts; those given are left alone." in lines
    assert f"texts: by the text tower of `{clip}`" in lines
    _pairs(folder)
    (tmp_path / "features").rename(tmp_path / "before")
    with pytest.raises(SystemExit):
        encoded(capsys, folder, "--backbone", clip)
    assert "row 0: image `0` must have a caption or a class name" in capsys.readouterr().err


def test_an_arena_takes_what_auto_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a store with a text tower and no pixels: `lora` too, on the text tower."""
    clip = tiny_clip(tmp_path / "clip", joint=16)
    lines = encoded(capsys, folder, "--split", "draw", "--backbone", clip)
    words = said(capsys, "draw", *next_of(lines, "draw"), "--out", tmp_path / "draw.json")
    draw = next_of(words, "tune")
    args = arena.Args((f"given={draw[1]}",), shots=(16,), seed=(1,), protocol=("all",), trials=1)
    plan = plan_of(args)
    assert "maple" not in plan.adapters
    assert set(plan.adapters) == set(check(draw))
    plan_of(dataclasses.replace(args, adapter=("lora",)))
    with pytest.raises(ConfigError, match="`maple` needs both towers"):
        plan_of(dataclasses.replace(args, adapter=("maple",)))
    plan, out = dataclasses.replace(plan, adapters=("lora",), epochs=1), tmp_path / "arena"
    arena._draw(args, plan, out)
    write_plan(out, plan)
    assert arena._linked(draw[1], store_of(out, "given"))
    arena._check_words(plan, out)
    [cell] = plan.cells()
    search = CellSearch(Arena(plan, out, 1), cell)
    search.advance(lambda: False)
    assert search.close()["state"] == "done"
