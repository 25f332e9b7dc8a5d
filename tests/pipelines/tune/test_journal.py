"""A study's journal that was damaged: found, said, and mended where that is asked for."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

import trainables.trials.workbench
from pipelines.tune.study import journal
from pipelines.tune.study.journal import NAME, SUMS, Altered
from pipelines.tune.study.mending import check_whole, restore
from pipelines.tune.study.study import open_study
from tests.one_process import Driver, copy, watching
from tests.pipelines.tune.test_kills import METRIC, SEARCH
from trainables.models.backbone import Backbone
from trainables.training.rows import rows_of
from trainables.trials.workbench import TrialSettings, Workbench

Start = Callable[[Path], Driver]


@pytest.fixture
def start(features: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A driver's life in a folder, with one worker."""
    monkeypatch.setattr(trainables.trials.workbench, "backbone_of", lambda *_: backbone)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the machine lives, here

    def driver(folder: Path) -> Driver:
        folder.mkdir(exist_ok=True)
        return Driver(SEARCH, TrialSettings(features, folder, METRIC, threads=1), 1, 1)

    return driver


@pytest.fixture
def whole(start: Start, tmp_path: Path) -> Path:
    """A search that ended."""
    folder = tmp_path / "whole"
    start(folder).fit()
    return folder


def told(folder: Path) -> list[tuple[TrialState, dict[str, object], dict[int, float]]]:
    trials = open_study(folder).trials
    return [(trial.state, trial.params, trial.intermediate_values) for trial in trials]


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return bytes([*data[:at], data[at] ^ (1 << bit), *data[at + 1 :]])


def test_every_flip_and_cut_of_a_journal_is_found(whole: Path) -> None:
    """In itself, at random places; a cut behind the last write that its sums tell of, too."""
    path = whole / NAME
    data = path.read_bytes()
    lots = random.Random(5)
    for _ in range(200):
        at = lots.randrange(len(data))
        for damaged in (flipped(data, at, lots.randrange(8)), data[:at]):
            path.write_bytes(damaged)
            with pytest.raises(Altered, match=r"journal\.log` was (altered|shortened)"):
                open_study(whole)
            with pytest.raises(Altered):
                journal.read_trials(path)
            assert path.read_bytes() == damaged  # nothing was written
    path.unlink()
    with pytest.raises(Altered, match="shortened"):
        check_whole(whole, mend=False)


def test_flips_and_cuts_of_the_sums_hide_nothing(whole: Path) -> None:
    """Either the journal is still known to be whole, or it is refused; it is never read otherwise
    than it was written."""
    expected, sums = told(whole), whole / SUMS
    data = sums.read_bytes()
    lots = random.Random(6)
    refused = 0
    for _ in range(200):
        at = lots.randrange(len(data))
        for damaged in (flipped(data, at, lots.randrange(8)), data[:at]):
            sums.write_bytes(damaged)
            try:
                assert told(whole) == expected
            except Altered:
                refused += 1
    assert 0 < refused < 200


def test_a_shortened_journal_is_said_before_anything_is_done_and_mended_if_asked(
    whole: Path, start: Start, tmp_path: Path
) -> None:
    expected = told(whole)
    short = tmp_path / "short"
    copy(whole, short)
    path = short / NAME
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 45 // 100])
    with pytest.raises(Altered, match=r"tells of \d trials, \d of which ended, and .* has 5") as no:
        check_whole(short, mend=False)
    assert "--mend" in str(no.value)
    said = check_whole(short, mend=True)
    assert (short / "journal-damaged-1.log").read_bytes() == data[: len(data) * 45 // 100]
    kept = sorted(one.name for one in (short / "astray-1").iterdir())
    assert kept
    assert any(all(name in line for name in kept) for line in said)
    assert check_whole(short, mend=False) == []
    start(short).fit()
    assert told(short) == expected


def test_trials_that_no_journal_tells_of_are_said(whole: Path, start: Start) -> None:
    for name in (NAME, SUMS):
        (whole / name).unlink()
    with pytest.raises(Altered, match="does not tell of all that was trained: it tells of 0 tria"):
        check_whole(whole, mend=False)
    check_whole(whole, mend=True)
    assert [one.name for one in (whole / "trials").iterdir()] == []
    start(whole).fit()
    assert check_whole(whole, mend=False) == []


def test_an_older_journal_without_sums_is_read_and_its_lines_are_looked_at(whole: Path) -> None:
    expected, path = told(whole), whole / NAME
    (whole / SUMS).unlink()
    assert told(whole) == expected
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"[" + lines[3], *lines[4:]]))
    with pytest.raises(Altered, match=r"line 4 of .* was altered: it is no JSON"):
        open_study(whole)
    path.write_bytes(b"".join([*lines[:3], b'{"op_code": 4}\n', *lines[4:]]))
    with pytest.raises(Altered, match="not a readable Optuna journal"):
        open_study(whole)


def test_what_a_dashboard_notes_is_no_damage(whole: Path) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    other = JournalStorage(JournalFileBackend(str(whole / NAME)))
    other.set_study_system_attr(0, "note", "looks good")
    study = open_study(whole)
    study.set_user_attr("ours", 1)
    assert study._storage.get_study_system_attrs(0)["note"] == "looks good"
    assert check_whole(whole, mend=False) == []


def checkpoints(folder: Path) -> dict[str, bytes]:
    found = sorted(folder.glob("*/best/adapter.safetensors")) + sorted(
        folder.glob("trials/*/[bl]*st/adapter.safetensors")
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_damaged_checkpoint_of_a_trial_that_ended_is_trained_again(
    whole: Path, start: Start
) -> None:
    expected = checkpoints(whole)
    study, settings = open_study(whole), start(whole).settings
    assert list(restore(study, SEARCH, whole, lambda: Workbench(settings))) == []
    (whole / "trials/0001/best/val.safetensors").write_bytes(b"damaged")
    shutil.rmtree(whole / "trials/0003")
    (whole / "zero_shot/best/state.json").unlink()
    said = list(restore(study, SEARCH, whole, lambda: Workbench(settings)))
    assert [line.split(":")[0] for line in said[:2]] == ["trial 1", "trial 3"]
    assert "val.safetensors` is missing or was altered" in said[0]
    assert said[2].endswith("It is measured again.")
    assert checkpoints(whole) == expected
    assert list(restore(study, SEARCH, whole, lambda: Workbench(settings))) == []


def full(error: int, path: str) -> OSError:
    return OSError(error, os.strerror(error), path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_full_disk_pauses_a_search_and_fails_no_trial(
    code: int, whole: Path, start: Start, tmp_path: Path
) -> None:
    """At any of its writes: with room again, the same search ends as the undisturbed one."""
    expected = told(whole)
    for first in range(0, 150, 7):
        folder, writes = tmp_path / f"full-{first}", 0
        folder.mkdir()

        def fill(change: str, first: int = first) -> None:
            nonlocal writes
            writes += 1
            if writes > first and change.startswith("open"):
                raise full(code, change)

        with watching(folder, fill):
            try:
                driver = start(folder)
                driver.fit()
            except OSError:  # before there was a search
                assert not (folder / "trials").exists()
                continue
        assert driver.searcher.paused
        states = [trial.state for trial in driver.searcher.study.trials]
        assert TrialState.FAIL not in states
        (folder / "stop").unlink(missing_ok=True)
        assert check_whole(folder, mend=False) == []
        start(folder).fit()
        assert told(folder) == expected, first


def test_rows_are_those_of_the_checkpoint_and_not_of_a_file_that_anyone_may_alter(
    whole: Path,
) -> None:
    run = whole / "trials" / "0000"
    expected = rows_of(run)
    assert [row["epoch"] for row in expected] == [1, 2, 3]
    path = run / "metrics.jsonl"
    told_there = [json.loads(line) for line in path.read_text().splitlines()]
    assert expected == told_there
    path.write_text(json.dumps(told_there[0] | {"epoch": 9}) + "\n")
    assert rows_of(run) == expected
    shutil.rmtree(run / "last")  # as an older version may have left it
    assert [row["epoch"] for row in rows_of(run)] == [9]
