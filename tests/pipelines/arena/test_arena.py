"""The arena: cells tuned alike, measured once on test, resumed, failed in the open."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from ray.tune.search import Searcher

from pipelines import typed
from pipelines.arena import __main__ as stage
from pipelines.arena.plan import Cell, Plan, Source, cell_folder, read_plan, write_plan
from pipelines.arena.progress import Progress
from pipelines.arena.queue import CellQueue
from pipelines.arena.tuning import Arena, CellSearch, CellTrial
from pipelines.cli import stage_main
from pipelines.demo.drawings import draw_classes
from pipelines.demo.lexicon import SHIFTED
from pipelines.demo.scenes import COLOURS
from pipelines.encode import __main__ as encode
from pipelines.evaluate.arenas import identity
from pipelines.shards import __main__ as shards
from pipelines.tune.samplers.from_disk import pausing
from tests import ROOT
from tests.one_process import snapshots
from trainables.data.shards import Seal, ShardSet
from trainables.errors import CliptuneError, ConfigError, DataError
from trainables.features.few_shot import read_draw
from trainables.files import read_json
from trainables.media import preprocess
from trainables.models import model_folder
from trainables.models.backbone import Backbone
from trainables.training.loop import Interrupted

NAMES = tuple(SHIFTED.colours[colour][-1] for colour in COLOURS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ten colours in two styles: 4 train, 2 val and 3 test images a class."""
    folder = tmp_path_factory.mktemp("data")
    for domain in ("base", "shifted"):
        index = draw_classes(folder / domain, domain, train=4, val=2, test=3)
        shards.run(shards.Args(source=str(index), out=folder / f"{domain}-shards"))
    return folder


def plan_of(data: Path, clip: Path, **changed: Any) -> Plan:
    plan = Plan(
        sources=(Source("colours", str(data / "base-shards"), "default"),),
        backbone=str(clip),
        revision=None,
        adapters=("zero_shot", "coop", "tip_adapter", "linear_probe"),
        shots=(2,),
        seeds=(1,),
        protocols=("all", "base_to_new"),
        trials=2,
        seconds=0.0,
        epochs=2,
        views=0,
    )
    return dataclasses.replace(plan, **changed)


@pytest.fixture(scope="module")
def folder(data: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arena's folder with its draws and features, and no cell yet."""
    folder = tmp_path_factory.mktemp("arena")
    plan = plan_of(data, clip)
    stage._draw(args(data, clip, folder), plan, folder)
    write_plan(folder, plan)
    encode.run(
        encode.Args(data / "base-shards", str(clip), out=folder / "features/colours", pixels=True)
    )
    return folder


def args(folder: Path, clip: Path, out: Path, **changed: Any) -> stage.Args:
    own = stage.Args(
        (f"colours={folder / 'base-shards'}",), str(clip), out=out, shots=(2,), seed=(1,)
    )
    return dataclasses.replace(own, **changed)


def cell(adapter: str, part: Any = "all") -> Cell:
    return Cell(f"colours-2-1-{part}", "colours", 2, 1, part, adapter)


def tune(
    folder: Path, one: Cell, plan: Plan | None = None, backbone: Backbone | None = None
) -> dict[str, Any]:
    search = CellSearch(Arena(plan or read_plan(folder), folder, threads=1), one, backbone)
    while search.advance(lambda: False):
        pass
    return search.close()


def test_a_cell_is_a_study_of_its_budget(folder: Path) -> None:
    found = tune(folder, cell("linear_probe"))
    assert (found["state"], found["trials"], found["failed_trials"]) == ("done", 2, 0)
    own = cell_folder(folder, cell("linear_probe"))
    assert read_json(own / "cell.json").items() >= found.items()
    best = read_json(own / "best.json")
    assert best["value"] == found["val"]
    rows = (own / best["path"] / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2  # the plan's epochs, fewer than the recipe's
    assert found["val"] == max(json.loads(row)["val/accuracy"] for row in rows)
    assert read_json(own / best["path"] / "best/classes.json")["names"] == list(NAMES)


def test_a_cell_on_a_part_of_a_card_gets_that_part_of_its_memory(folder: Path) -> None:
    arena = Arena(read_plan(folder), folder, threads=1, share=0.25)
    assert CellSearch(arena, cell("linear_probe")).bench.settings.share == 0.25


def test_a_cell_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path) -> None:
    """Stopped in the middle of its first trial, then resumed: the numbers of one undisturbed."""
    (tmp_path / "draws").symlink_to(folder / "draws")
    (tmp_path / "features").symlink_to(folder / "features")
    arena, one = Arena(read_plan(folder), tmp_path, threads=1), cell("coop")
    asked = iter([False])
    with pytest.raises(Interrupted):
        CellSearch(arena, one).advance(lambda: next(asked, True))
    assert not (cell_folder(tmp_path, one) / "cell.json").exists()
    resumed, whole = tune(tmp_path, one, arena.plan), tune(folder, one)
    for name in ("val", "trials", "trainable_parameters"):
        assert resumed[name] == whole[name]


def test_a_cell_killed_between_any_two_writes_goes_on(
    folder: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(folder: Path) -> dict[str, Any]:
        return tune(folder, one, plan, backbone) | {"seconds": None}

    monkeypatch.setattr(os, "fsync", lambda _: None)
    plan, one, whole = read_plan(folder), cell("linear_probe"), tmp_path / "whole"
    whole.mkdir()
    for name in ("draws", "features"):
        (whole / name).symlink_to(folder / name)
    with snapshots(whole, tmp_path):
        expected = found(whole)
    killed = sorted(tmp_path.glob("[0-9]*"))
    assert len(killed) > 80
    for left in killed[::4]:
        assert found(left) == expected
        assert read_json(cell_folder(left, one) / "best.json")["value"] == expected["val"]


def test_the_budget_in_seconds_ends_a_cell(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "draws").symlink_to(folder / "draws")
    (tmp_path / "features").symlink_to(folder / "features")
    plan = dataclasses.replace(read_plan(folder), trials=50, seconds=1e-9)
    assert tune(tmp_path, cell("linear_probe"), plan)["trials"] == 1


def test_a_cell_that_breaks_is_told_and_the_worker_lives(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "draws").symlink_to(folder / "draws")
    (tmp_path / "features").symlink_to(folder / "features")
    arena = Arena(read_plan(folder), tmp_path, threads=1)
    trial = object.__new__(CellTrial)
    trial.setup({"cell": dataclasses.asdict(cell("coop"))}, arena)
    monkeypatch.setattr(CellSearch, "advance", lambda *_: 1 / 0)
    found = trial.step()
    assert (found["state"], found["done"]) == ("failed", True)
    assert found["reason"] == "ZeroDivisionError: division by zero"
    kept = read_json(cell_folder(tmp_path, cell("coop")) / "failed.json")
    assert kept["reason"] == found["reason"]
    monkeypatch.undo()
    assert trial.search is not None
    backbone = trial.search.bench.backbone
    trial.reset_config({"cell": dataclasses.asdict(cell("zero_shot"))})
    assert trial.step() | {"state": "running"} == trial.step() | {"state": "running"}
    assert trial.search.bench.backbone is backbone  # loaded by the first cell, for all


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        TimeoutError("the other side does not answer"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_machine_did_is_not_the_cells_failure(
    error: Exception, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    trial = object.__new__(CellTrial)
    trial.setup(
        {"cell": dataclasses.asdict(cell("coop"))}, Arena(read_plan(folder), tmp_path, threads=1)
    )
    monkeypatch.setattr(CellSearch, "__init__", broken)
    with pytest.raises(type(error)):
        trial.step()
    assert not cell_folder(tmp_path, cell("coop")).exists()


def test_a_full_disk_pauses_the_arena_and_fails_no_cell(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trial = object.__new__(CellTrial)
    arena = Arena(read_plan(folder), tmp_path, threads=1)
    trial.setup({"cell": dataclasses.asdict(cell("coop"))}, arena)
    monkeypatch.setattr(CellSearch, "__init__", broken)
    told = trial.step()
    assert told == {
        **{"done": True, "state": "interrupted"},
        "reason": "[Errno 28] No space left on device",
    }
    assert arena.stop_file.exists()  # for the cells beside it
    queue = CellQueue([cell("coop"), cell("tip_adapter")])
    queue.suggest("a")
    queue.on_trial_complete("a", told)
    assert queue.suggest("b") == Searcher.FINISHED
    with pytest.raises(CliptuneError, match=r"paused: .* No space left on device"), pausing(queue):
        pass
    assert not cell_folder(tmp_path, cell("coop")).exists()


def test_a_cell_that_lost_its_worker_is_handed_out_again_and_then_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = cell("coop")
    queue = CellQueue([one])
    progress = Progress(tmp_path, queue)

    def lose(name: str) -> None:
        config = queue.suggest(name)
        assert config == {"cell": dataclasses.asdict(one)}
        queue.on_trial_complete(name, error=True)
        lost: Any = SimpleNamespace(config=config, error_file=None)
        progress.on_trial_error(0, [], lost)

    for attempt in ("a", "b"):
        lose(attempt)
    assert "coop goes on with another worker, this one failed: the worker died" in (
        capsys.readouterr().out
    )
    queue.suggest("c")
    queue.on_trial_result("c", {"state": "running"})  # it got further: its losses are forgotten
    assert queue.suggest("none") is None  # while one runs, it may come back
    queue.on_trial_complete("c", error=True)
    for attempt in ("d", "e"):
        assert not (cell_folder(tmp_path, one) / "failed.json").exists()
        lose(attempt)
    reason = "the machine failed 3 times: the worker died"
    assert read_json(cell_folder(tmp_path, one) / "failed.json")["reason"] == reason
    assert f"failed: {reason}" in capsys.readouterr().out
    assert queue.suggest("end") == Searcher.FINISHED


def test_draws_are_alike_for_all_and_none_is_of_test(data: Path, folder: Path) -> None:
    whole = read_draw(folder / "draws/colours-2-1-all.json")
    base, new = (read_draw(folder / f"draws/colours-2-1-{part}.json") for part in ("base", "new"))
    assert base.names + new.names == whole.names == NAMES
    assert {m.id for m in base.train} | {m.id for m in new.train} == {m.id for m in whole.train}
    sealed = ShardSet.open(data / "base-shards").rows("test", ["id"], Seal("a test of the seal"))
    assert not {row["id"] for row in sealed} & {m.id for m in (*whole.train, *whole.val)}


def test_a_data_set_is_read_once_for_all_its_draws(
    data: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, rows = [], ShardSet.rows
    monkeypatch.setattr(
        ShardSet, "rows", lambda self, *asked: (read.append(asked[0]), rows(self, *asked))[1]
    )
    sources = tuple(Source(n, str(data / f"{n}-shards"), "default") for n in ("base", "shifted"))
    plan = plan_of(data, clip, sources=sources, shots=(1, 2), seeds=(1, 2))
    stage._draw(args(data, clip, tmp_path), plan, tmp_path)
    assert read == ["train", "val"] * 2
    draws = [read_draw(path) for path in (tmp_path / "draws").iterdir()]
    assert len({(d.dataset, d.shots, d.seed, d.part) for d in draws}) == len(draws) == 24
    assert len({d.key for d in draws}) == 24


def test_another_budget_in_the_same_folder_is_refused(folder: Path) -> None:
    plan = read_plan(folder)
    with pytest.raises(DataError, match="its `trials` is 2, this one's 3"):
        write_plan(folder, dataclasses.replace(plan, trials=3))
    write_plan(folder, plan)


@pytest.mark.parametrize("what", ["model", "data", "what decodes images"])
def test_features_that_would_be_others_now_are_refused(
    data: Path,
    clip: Path,
    folder: Path,
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, shards, place = plan_of(data, clip), data / "base-shards", folder / "features/colours"
    read = mock.Mock(wraps=model_folder.fingerprint)
    monkeypatch.setattr(model_folder, "fingerprint", read)
    stage._check_unchanged(plan, [(str(shards), place)] * 2)
    assert read.call_count == 1  # weights may be of gigabytes
    if what == "model":
        model = shutil.copytree(clip, tmp_path / "model")
        with (model / "config.json").open("a") as file:
            file.write(" ")
        plan = dataclasses.replace(plan, backbone=str(model))
    elif what == "data":
        shards = data / "shifted-shards"
    else:
        monkeypatch.setattr(preprocess, "decoder_versions", lambda: {"Pillow": "1.0"})
    changed = {"model": plan.backbone, "data": shards}.get(what, what)
    store = next(place.iterdir())
    with pytest.raises(DataError, match=f"{changed}`? changed since `{store}` was made: its cells"):
        stage._check_unchanged(plan, [(str(shards), place)])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"trials": 0}, "`--trials` must be at least 1, got 0."),
        ({"shots": (0,)}, "`--shots` must be at least 1, got 0."),
        ({"adapter": ("coop", "coop")}, "`--adapter` must name each of its values once"),
        ({"adapter": ("soft_prompt",)}, "`soft_prompt` is for retrieval, not for classification."),
        ({"adapter": ("co_op",)}, "Did you mean `coop`"),
        ({"data": ("colours",)}, "`--data` takes each NAME=VALUE once, got 'colours'."),
        ({"words": ("other=default",)}, "`--words` names `other`, which `--data` does not."),
        ({"shots": (5,)}, "class `scarlet` .*4.*`--fewer`"),
        ({"seed": (1, 1)}, "`--seed` must name each of its values once"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    data: Path, clip: Path, tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((CliptuneError, ConfigError, DataError), match=sentence):
        stage.run(args(data, clip, tmp_path / "out", **changed))
    assert not (tmp_path / "out/features").exists()


def test_a_name_that_leaves_no_room_is_told_before_any_training(
    data: Path, clip: Path, folder: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"names": {"tan": "a red dog on a table " * 10}}))
    plan = plan_of(data, clip, sources=(Source("colours", str(data / "base-shards"), str(words)),))
    stage._draw(args(data, clip, tmp_path), plan, tmp_path)
    with pytest.raises(
        ConfigError, match=r"class `a red dog .* must have at most 61 tokens.*got 63"
    ):
        stage._check_words(plan, tmp_path)


def call(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


FRAGILE = """
import os, sys
from pathlib import Path

import torch

from pipelines import arena, cli
from pipelines.arena import tuning

class Fragile(tuning.CellTrial):
    def step(self):
        for number, end in enumerate((self.device_fails, self.process_dies)):
            mark = self.arena.folder / f"failure-{number}"
            if self.cell.adapter == "coop" and not mark.exists():
                mark.write_text(str(os.getpid()))
                end()
        assert (self.arena.folder / "failure-0").read_text() != str(os.getpid())
        return super().step()

    def device_fails(self):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def process_dies(self):
        os._exit(1)

tuning.CellTrial = Fragile
cli.stage_main("arena")
"""


@pytest.mark.slow
def test_a_whole_arena_and_again(
    data: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two data sets, three adapters, three protocols, on workers of which two fail; a second call
    tunes and measures nothing."""
    out = tmp_path / "arena"
    words = [
        *("--out", str(out), "--backbone", str(clip)),
        *("--data", f"base={data / 'base-shards'}", f"shifted={data / 'shifted-shards'}"),
        *("--adapter", "zero_shot", "coop", "linear_probe", "--shots", "2", "--seed", "1", "2"),
        *("--trials", "2", "--epochs", "2", "--protocol", "all", "base_to_new", "shift"),
    ]
    done = call("-c", FRAGILE, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("coop goes on with another worker, this one failed:") == 2
    assert "an illegal memory access was encountered" in done.stdout
    arena = read_json(out / "arena.json")
    assert {one["state"] for one in arena["cells"]} == {"done"}
    rows = {
        (c["dataset"], c["protocol"], c["adapter"], c["seed"]): c["accuracy"]
        for c in arena["cells"]
    }
    assert len(rows) == len(arena["cells"]) == 2 * 2 * (3 + 3 + 3)
    probe = rows["base", "base_to_new", "linear_probe", 1]
    assert probe["base"] is not None
    assert probe["new"] is None  # it has a row of weights for each class it saw, and no other
    coop = rows["base", "base_to_new", "coop", 2]
    assert coop["harmonic"] == pytest.approx(
        2 * coop["base"] * coop["new"] / (coop["base"] + coop["new"] or 1)
    )
    for one in arena["cells"]:
        for key, answers in one["correct"].items():
            assert len(answers) == (30 if key == "all" else 15)
            assert one["accuracy"][key] == pytest.approx(answers.count("1") / len(answers))
            assert one["ece"].keys() == one["correct"].keys()
            assert all(0 <= value <= 1 for value in one["ece"][key].values())
            test = arena["tests"][one["tests"][key]]
            assert len(test["images"]) == len(test["labels"]) == len(answers)
            right = [label for label, a in zip(test["labels"], answers, strict=True) if a == "1"]
            shares = [right.count(n) / test["labels"].count(n) for n in sorted({*test["labels"]})]
            assert list(one["per_class"][key].values()) == pytest.approx(shares)
    assert "other classes" in (out / "arena.html").read_text()
    assert "coop" in (out / "arena.html").read_text()
    assert len((out / "test_openings.jsonl").read_text().splitlines()) == 1
    before = identity(out)
    monkeypatch.setattr(typed, "command", lambda name, *flags: stage_main(name, [*map(str, flags)]))
    stage_main("arena", words)  # with the stages that it runs in this process
    assert "24 cells, 24 of them tuned already" in capsys.readouterr().out
    assert identity(out) == before
    assert len((out / "test_openings.jsonl").read_text().splitlines()) == 1
