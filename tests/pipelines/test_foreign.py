"""Nothing foreign is overwritten, and nothing that lies elsewhere or is no number is believed."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.hold import hold, refuse_links
from pipelines.runs.contestants import read_contest
from pipelines.workspace import none_left_empty
from tests.things import in_this_process
from tests.trainables.adapters.test_few_shot_runs import finish, start
from trainables.errors import CheckpointError, DataError
from trainables.files import read_json, sha256_file, sha256_json, write_json
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import load_adapter, save_checkpoint
from trainables.training.loop import Diverged, Run
from trainables.trials.stacked import StackedRuns


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("stage", ["train", "tune"])
def test_a_folder_of_something_else_is_not_written_to(
    features: Path, clip: Path, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(clip, tmp_path / "model"))
    before = files(model)
    words = (stage, "--features", features, "--out", model, "--adapter", "projection")
    assert in_this_process(*words, *(("--trials", 1) if stage == "tune" else ())) == 2
    mark = "run.json" if stage == "train" else "study.json"
    said = capsys.readouterr().err
    assert f"`{model}` holds files of something else (config.json, " in said
    assert f"and no {mark}: nothing was written. Give a new or an empty folder" in said
    assert files(model) == before


def test_a_folder_of_ones_own_and_an_empty_one_are(tmp_path: Path) -> None:
    for names in ((), ("run.json", "notes.txt"), (".lock", "holder.json"), ("ray",)):
        folder = tmp_path / "-".join(("x", *names))
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        (folder / "holder.json").unlink(missing_ok=True)
        with hold(folder, "run.json"):
            pass
    study = tmp_path / "study"
    study.mkdir()
    for name in ("journal.log", "best.json"):
        (study / name).touch()
    with hold(study, "study.json", "journal.log"):
        pass
    with pytest.raises(DataError, match=r"something else \(best.json, journal.log\) and no run"):
        hold(study, "run.json").__enter__()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"something else \(notes.txt\) and no run.json"):
        hold(tmp_path / "notes", "run.json").__enter__()


@pytest.mark.parametrize("path", ["../other/trials/0000", "{other}/trials/0000"])
def test_a_choice_outside_its_study_is_not_believed(tmp_path: Path, path: str) -> None:
    own, other = tmp_path / "study", tmp_path / "other"
    (other / "trials" / "0000").mkdir(parents=True)
    entry = {"trial": 0, "adapter": "lora", "value": 0.5, "path": path.format(other=other)}
    write_json(own / "study.json", {"features": "f", "metric": "val/t2i_r1"})
    write_json(own / "best.json", entry | {"per_adapter": {"lora": entry}})
    with pytest.raises(DataError, match="`path` of `lora` must lie in the study's folder, got"):
        read_contest(own, only_best=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_adapter_with_what_is_no_number_is_refused(
    tmp_path: Path, backbone: Backbone, features: Path, bad: float
) -> None:
    finish(start(tmp_path, backbone, features, "linear_probe", epochs=1))
    best = tmp_path / "best"
    stored = load_file(best / "adapter.safetensors")
    name = max(stored, key=lambda one: stored[one].numel())
    stored[name].view(-1)[3] = bad
    rewrite(best, stored)
    with pytest.raises(CheckpointError, match=f"`{name}` in .* holds what is no finite number"):
        load_adapter(best, backbone)


def test_an_adapter_of_whole_numbers_is_refused(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    finish(start(tmp_path, backbone, features, "linear_probe", epochs=1))
    best = tmp_path / "best"
    stored = load_file(best / "adapter.safetensors")
    rewrite(best, {name: tensor.long() for name, tensor in stored.items()})
    with pytest.raises(CheckpointError, match=r"must be of torch.float32, got torch.int64"):
        load_adapter(best, backbone)


@pytest.mark.parametrize(
    ("name", "how", "rule"),
    [
        ("state.json", "[]", "has a field of a wrong type"),
        ("state.json", {"step": ...}, "lacks the field `step`"),
        ("state.json", {"step": "7"}, "`step` is '7' of 9"),
        ("state.json", {"step": 10**9}, "`step` is 1000000000 of 9"),
        ("state.json", {"step": -1}, "`step` is -1 of 9"),
        ("state.json", {"rows": [7]}, "has a field of a wrong type"),
        ("state.json", {"rows": [{}]}, "lacks the field `epoch`"),
        ("state.json", {"rows": [{"epoch": 1}]}, "lacks the field `val/log_likelihood`"),
        ("state.json", {"rows": [{"epoch": 2}]}, "its rows are not those of the first epochs"),
        ("state.json", {"rows": [{"epoch": "1"}]}, "a value is no number"),
        ("state.json", {"sums": 7}, "has a field of a wrong type"),
        ("optimizer.safetensors", "", "has a field of a wrong type"),
        ("optimizer.safetensors", None, "No such file"),
        ("optimizer.safetensors", {"momentum_buffer/other": torch.zeros(1)}, "the field `other`"),
        ("optimizer.safetensors", {"momentum_buffer": torch.zeros(1)}, "lacks the field ``"),
        ("optimizer.safetensors", torch.zeros(1), r"of shape \(1,\), or not finite"),
        ("optimizer.safetensors", float("nan"), r"or not finite"),
    ],
)
def test_a_crafted_state_of_a_run_is_one_sentence(
    tmp_path: Path, backbone: Backbone, features: Path, name: str, how: Any, rule: str
) -> None:
    start(tmp_path, backbone, features, "clip_adapter").advance()
    path = tmp_path / "last" / name
    if name == "state.json" and isinstance(how, dict):
        found = read_json(path) | how
        path.write_text(json.dumps({key: one for key, one in found.items() if one is not ...}))
    elif isinstance(how, str):
        path.write_text(how)
    elif how is None:
        path.unlink()
    else:
        stored = load_file(path)
        key = min(stored)
        replaced = torch.full_like(stored[key], how) if isinstance(how, float) else how
        save_file(how if isinstance(how, dict) else stored | {key: replaced}, path)
    sign(path)
    with pytest.raises(DataError, match=f"`{path}` .*{rule}"):
        start(tmp_path, backbone, features, "clip_adapter")


def rewrite(best: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As somebody would who also knows the manifest."""
    save_file(tensors, best / "adapter.safetensors")
    sign(best / "adapter.safetensors")


def sign(path: Path) -> None:
    manifest = read_json(path.with_name("manifest.json"))
    del manifest["sha256"]
    manifest["files"].pop(path.name)
    if path.exists():
        manifest["files"][path.name] = sha256_file(path)
    write_json(path.with_name("manifest.json"), manifest | {"sha256": sha256_json(manifest)})


def ruin(run: Run) -> None:
    """As the last step of an epoch may."""
    with torch.no_grad():
        next(iter(run.trained.values())).view(-1)[0] = float("inf")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_adapter_with_what_is_no_number_is_not_written(
    tmp_path: Path, backbone: Backbone, features: Path, bad: float
) -> None:
    run = finish(start(tmp_path, backbone, features, "linear_probe", epochs=1))
    before = files(tmp_path)
    with torch.no_grad():
        next(iter(run.trained.values())).view(-1)[3] = bad
    with pytest.raises(CheckpointError, match=r"best` was not written: `.*` is no finite number"):
        save_checkpoint(tmp_path / "best", run.adapter, {})
    assert files(tmp_path) == before


@pytest.mark.parametrize("merged", [(), ("--merged",)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_no_number_is_not_exported(
    tmp_path: Path,
    features: Path,
    merged: tuple[str, ...],
    bad: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With `--merged` it would stand in a weight of CLIP itself."""
    run, out = tmp_path / "run", tmp_path / "out"
    words = ("--features", features, "--out", run, "--adapter", "lora", "--set", "epochs=1")
    assert in_this_process("train", *words) == 0
    stored = load_file(run / "best" / "adapter.safetensors")
    stored[min(stored)].view(-1)[0] = bad
    rewrite(run / "best", stored)
    assert in_this_process("export", "--run", run, "--out", out, *merged) == 2
    assert "holds what is no finite number" in capsys.readouterr().err
    assert not out.exists()


def test_weights_that_are_no_numbers_after_an_epoch_fail_the_run_and_are_not_saved(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    run = start(tmp_path, backbone, features, "clip_adapter")
    run.begin_epoch()
    while run.step < run.epoch_end:
        run.count(run._train_step())
    ruin(run)
    with pytest.raises(Diverged, match="a weight is no finite number after step 2"):
        run.end_epoch(0.0)
    assert not (tmp_path / "best").exists()


def test_the_others_of_a_stack_go_on(
    tmp_path: Path, backbone: Backbone, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"optim.kind": "adamw", "optim.schedule": "cosine"}
    runs = [start(tmp_path / str(n), backbone, features, "clip_adapter", **given) for n in range(2)]
    stack = StackedRuns(runs)
    plain = Run.end_epoch

    def end(run: Run, seconds: float) -> dict[str, float]:
        if run is runs[0]:
            ruin(run)
        return plain(run, seconds)

    monkeypatch.setattr(Run, "end_epoch", end)
    first, second = stack.advance()
    assert isinstance(first, Diverged)
    assert isinstance(second, dict)
    assert stack.runs == [runs[1]]
    assert isinstance(stack.advance()[0], dict)


def test_the_next_line_can_be_pasted(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run; echo"
    words = ("train", "--features", features, "--out", out, "--adapter", "projection")
    assert in_this_process(*words, "--set", "epochs=1") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(last.removeprefix("next: ")) == ["cliptune", "evaluate", "--run", str(out)]


def test_a_checkpoint_is_not_read_through_a_link(
    tmp_path: Path, backbone: Backbone, features: Path
) -> None:
    """A run that is itself reached by one is."""
    finish(start(tmp_path / "run", backbone, features, "clip_adapter", epochs=1))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    load_adapter(tmp_path / "link" / "best", backbone)
    best, away = tmp_path / "run" / "best", tmp_path / "away"
    name = "adapter.safetensors"
    (best / name).rename(away)
    (best / name).symlink_to(away)
    with pytest.raises(CheckpointError, match=rf"{name}` is a symbolic link, to `{away}`: a check"):
        load_adapter(best, backbone)
    (best / name).unlink()
    away.rename(best / name)
    best.rename(away)
    best.symlink_to(away)
    with pytest.raises(CheckpointError, match=rf"best` is a symbolic link, to `{away}`: a check"):
        load_adapter(best, backbone)


@pytest.mark.parametrize("place", ["best", "best.new", "best.old", "last.new"])
def test_nothing_is_written_where_a_link_leads(
    tmp_path: Path, backbone: Backbone, features: Path, place: str
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (away / "mine.txt").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / place).symlink_to(away)
    finish(start(run, backbone, features, "clip_adapter", epochs=2))
    assert files(away) == {"mine.txt": b"mine"}
    load_adapter(run / "best", backbone)


@pytest.mark.parametrize("name", ["a", "a/coop", "a/coop/journal.log", "a/coop/trials/0000"])
def test_a_cell_of_an_arena_is_not_read_through_a_link(tmp_path: Path, name: str) -> None:
    """What the arena itself links is: a store of embeddings among its features."""
    path, away = tmp_path / "arena" / "cells" / name, tmp_path / "away"
    for place in (path.parent, tmp_path / "arena" / "features"):
        place.mkdir(parents=True)
    (tmp_path / "arena" / "features" / "data").symlink_to(away)
    refuse_links(tmp_path / "arena")
    path.symlink_to(away)
    with pytest.raises(DataError, match=f"`{path}` is a symbolic link out of"):
        refuse_links(tmp_path / "arena")


def test_what_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "c"
    with pytest.raises(DataError), none_left_empty(out), hold(out):
        raise DataError("nothing came of it.")
    assert list(tmp_path.iterdir()) == []
    with none_left_empty(out), hold(out):
        (tmp_path / "a" / "other").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]
    with none_left_empty(out), hold(out):
        (out / "own").touch()
    assert (out / "own").exists()
