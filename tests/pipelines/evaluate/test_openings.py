"""The log of test openings forgets nothing, however it is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate import openings
from pipelines.evaluate.openings import NAME, damages, log_opening
from trainables.errors import DataError
from trainables.files import sha256_bytes, write_json


def opened(run: Path, times: int, result: bool = True) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(times):
        found = log_opening(run, {"at": f"2026-01-0{number + 1}", "rows": ["lora"]})
        if result:
            write_json(run / "result.json", {"test_openings": found})
    return found


def test_each_line_holds_the_hash_of_the_one_before(tmp_path: Path) -> None:
    found = opened(tmp_path, 3)
    lines = (tmp_path / NAME).read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == found
    assert found[0]["previous"] == ""
    assert [one["previous"] for one in found[1:]] == [sha256_bytes(line) for line in lines[:2]]
    assert damages(found) == []


@pytest.mark.parametrize("cut", [1, 20, 60])
@pytest.mark.parametrize("result", [True, False])
def test_a_torn_last_line_is_counted_and_said_for_ever_after(
    tmp_path: Path, cut: int, result: bool
) -> None:
    opened(tmp_path, 4, result)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-cut])
    for times in (5, 6):
        found = log_opening(tmp_path, {"at": "later"})
        assert len(found) == times
        assert any("its last line was cut" in text for text in damages(found))
        if result:
            write_json(tmp_path / "result.json", {"test_openings": found})


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_shortened_log_is_filled_from_what_results_remember(tmp_path: Path, left: int) -> None:
    before = opened(tmp_path, 4)
    path = tmp_path / NAME
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:left]))
    found = log_opening(tmp_path, {"at": "later"})
    assert len(found) == 5
    assert all(one in found for one in before)
    write_json(tmp_path / "result.json", {"test_openings": found})
    again = log_opening(tmp_path, {"at": "last"})
    assert len(again) == 6
    said = f"{4 - left} openings that a result of this run lists are missing"
    assert any(said in text for text in damages(again))
    path.unlink()
    assert len(log_opening(tmp_path, {"at": "anew"})) == 6  # as the result has five


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace(b"01-01", b"01-09"), *lines[1:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0], b"\xff\xfe", *lines[2:]],
        lambda lines: [lines[0], b"[1]", *lines[2:]],
        lambda lines: [lines[0], b"[" * 100_000, *lines[2:]],
    ],
    ids=["changed", "taken out", "swapped", "no text", "no opening", "without an end"],
)
def test_a_line_that_was_changed_or_taken_out_is_found(tmp_path: Path, change: Any) -> None:
    opened(tmp_path, 4, result=False)
    path = tmp_path / NAME
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    for _ in range(2):
        found = log_opening(tmp_path, {"at": "later"})
        assert damages(found)
    assert "line" in damages(found)[0]


def test_a_log_of_an_older_version_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text('{"at": "2025-01-01"}\n{"at": "2025-01-02"}\n')
    found = log_opening(tmp_path, {"at": "2026-01-01"})
    assert len(found) == 3
    assert damages(found) == []


def test_it_is_on_disk_before_test_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(openings.os, "fsync", synced.append)
    log_opening(tmp_path, {"at": "now"})
    assert len(synced) == 2  # the file, and the folder that names it


def test_a_full_disk_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(openings.os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device. Test was not opened"):
        log_opening(tmp_path, {"at": "now"})
