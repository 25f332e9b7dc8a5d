"""A search that is killed between any two changes to its files, of the driver or of a worker."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

import trainables.trials.workbench
from pipelines.tune.study.best import best_trial
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import open_study
from tests.one_process import Driver, Killed, copy, snapshots, watching
from trainables.files import sha256_file
from trainables.models.backbone import Backbone
from trainables.trials.workbench import TrialSettings

METRIC = "val/t2i_mrr"
SEARCH = Search(
    ("projection",),
    METRIC,
    trials=5,
    epochs=3,
    seed=3,
    fixed={"batch_size": 16, "loss.captions_per_image": 1},
)
Start = Callable[[Path, tuple[int, int]], Driver]


@pytest.fixture
def start(features: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A driver's life in a folder."""
    monkeypatch.setattr(trainables.trials.workbench, "backbone_of", lambda *_: backbone)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the machine lives, here

    def driver(folder: Path, how: tuple[int, int]) -> Driver:
        folder.mkdir(exist_ok=True)
        return Driver(SEARCH, TrialSettings(features, folder, METRIC, threads=1), *how)

    return driver


def told(folder: Path) -> dict[int, dict[str, Any]]:
    """All that the journal has of the trials, but how long they took."""
    facts = {}
    for trial in open_study(folder).trials:
        notes = {k: v for k, v in trial.user_attrs.items() if k != "seconds"}
        facts[trial.number] = {
            **{"state": trial.state.name, "params": trial.params},
            **{"values": trial.values, "epochs": trial.intermediate_values, **notes},
        }
    return facts


def tensors(folder: Path) -> dict[str, str]:
    """What was learned: the hash of each checkpoint's tensors."""
    paths = (path for kind in ("last", "best") for path in folder.glob(f"trials/*/{kind}/ad*"))
    return {str(path.relative_to(folder)): sha256_file(path) for path in paths}


def check(folder: Path) -> None:
    """No trial was lost, doubled or failed, and all that is written is of one mind."""
    study = open_study(folder)
    assert [t.number for t in study.trials] == list(range(SEARCH.trials))
    for trial in study.trials:
        own = folder / "trials" / f"{trial.number:04d}"
        rows = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
        assert trial.intermediate_values == {row["epoch"]: row[METRIC] for row in rows}
        whole = len(rows) == SEARCH.epochs
        assert trial.state in ((TrialState.COMPLETE,) if whole else (TrialState.PRUNED,)), trial
        best = max(rows, key=lambda row: row[METRIC])
        assert trial.user_attrs["best"] == best[METRIC]
        assert json.loads((own / "best/state.json").read_text())["row"] == best
    top, best = best_trial(study), json.loads((folder / "best.json").read_text())
    assert top is not None
    assert (best["trial"], best["value"]) == (top.number, top.user_attrs["best"])


ALONE, FUSED, TWO_AT_ONCE = (1, 1), (3, 1), (3, 2)  # trials trained together, workers


@pytest.mark.parametrize("how", [ALONE, FUSED, TWO_AT_ONCE])
def test_a_search_killed_between_any_two_writes_goes_on(
    how: tuple[int, int], start: Start, tmp_path: Path
) -> None:
    """What a kill leaves is the disk as it is at that moment: each such disk becomes a search of
    its own. Where one trial is trained at a time, it ends as the undisturbed one, to the letter."""
    whole = tmp_path / "whole"
    whole.mkdir()
    with snapshots(whole, tmp_path) as points:
        start(whole, how).fit()
    check(whole)
    expected = told(whole), tensors(whole)
    assert {fact["state"] for fact in expected[0].values()} == {"COMPLETE", "PRUNED"}
    killed = sorted(tmp_path.glob("[0-9]*"))
    assert len(killed) > 100
    for folder in killed:
        start(folder, how).fit()
        check(folder)
        if how == ALONE:
            assert (told(folder), tensors(folder)) == expected, points[int(folder.name)]


def test_a_search_whose_journal_was_torn_in_a_write_goes_on(start: Start, tmp_path: Path) -> None:
    """What is told at once may be there in part: whole lines, and half of one."""
    whole, sizes = tmp_path / "whole", [0]

    def snapshot(_: str) -> None:
        journal = whole / "journal.log"
        size = journal.stat().st_size if journal.exists() else 0
        if size > sizes[-1]:
            torn = tmp_path / f"{len(sizes):04}"
            copy(whole, torn)
            os.truncate(torn / journal.name, (sizes[-1] + size) // 2)
            sizes.append(size)

    with watching(whole, snapshot):
        start(whole, FUSED).fit()
    torn = sorted(tmp_path.glob("[0-9]*"))
    assert len(torn) > 8
    for folder in torn:
        start(folder, FUSED).fit()
        check(folder)


@pytest.mark.parametrize("how", [ALONE, TWO_AT_ONCE])
def test_a_worker_killed_between_any_two_of_its_writes_loses_no_trial(
    how: tuple[int, int], start: Start, tmp_path: Path
) -> None:
    """The driver lives, and hands out again what the worker had."""
    whole, points = tmp_path / "whole", list[str]()
    driver = start(whole, how)
    with watching(whole, points.append):
        driver.fit()
    expected = told(whole), tensors(whole)
    # All in a trial's folder but `pruned`, which is the driver's.
    own = [n for n, name in enumerate(points) if re.search(r"trials/.*[^d]$|zero_shot", name)]
    for point in own[::11]:
        folder, passed = tmp_path / str(point), list[str]()

        def die(name: str, point: int = point, passed: list[str] = passed) -> None:
            passed.append(name)
            if len(passed) == point + 1:
                raise Killed(name)

        driver = start(folder, how)
        with watching(folder, die):
            driver.fit()
        check(folder)
        if how == ALONE:
            assert (told(folder), tensors(folder)) == expected, points[point]
