"""Runs of Weights & Biases, offline: what lies in the files that `wandb sync` would send."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.records.wandb import Wandb, logged_in
from pipelines.tune.recording import recording
from tests.recorded import METRIC, REASON, begin, told_in_two_goes
from trainables.errors import CliptuneError

pytest.importorskip("wandb", reason="needs cliptune[wandb]")


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: after 7 bytes, blocks of 32 KiB; in them pieces of records,
    each after its CRC (4 bytes), its length (2) and its kind (1: whole; 2, 3, 4: first, middle,
    last)."""
    record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record.FromString(whole)
            whole = b""


def told(path: Path) -> dict[str, Any]:
    """A run: its name, its group, its settings, its rows by step, what it came to, its exit."""
    found: dict[str, Any] = {"rows": {}, "summary": {}, "config": {}}

    def items(of: Any) -> dict[str, Any]:
        return {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in of}

    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {"name": run.display_name, "group": run.run_group, "job": run.job_type}
            found["config"] |= items(run.config.update)
        elif kind == "history":
            row = items(record.history.item)
            found["rows"][record.history.step.num] = row.get(METRIC)
        elif kind == "summary":
            found["summary"] |= items(record.summary.update)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def test_a_study_is_a_group_and_a_resumed_run_lies_there_once_and_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a study"
    folder.mkdir()
    told_in_two_goes("wandb", folder)
    place = folder / "records" / "wandb"
    assert f"wandb sync '{place}'/offline-run-*" in capsys.readouterr().out
    every = [told(path) for path in place.glob("offline-run-*/*.wandb")]
    runs = {one["name"]: one for one in every}
    assert len(every) == len(runs) == 5
    assert {one["group"] for one in every} == {"a study"}
    assert runs["a study"]["job"] == "study"
    assert runs["a study"]["summary"]["best"] == 0.6
    last = runs["a study 0003 soft_prompt"]
    assert last["rows"] == {1: 0.4, 2: 0.5, 3: pytest.approx(0.6)}
    assert last["config"]["optim.lr"] == 0.01
    assert last["summary"]["state"] == "complete"
    failed = runs["a study 0002 soft_prompt"]
    assert (failed["exit"], failed["summary"]["cliptune.reason"]) == (1, REASON)
    assert [runs[f"a study {name}"]["exit"] for name in ("0000 lora", "0001 lora")] == [0, 0]


def test_a_server_that_does_not_answer_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.records import wandb

    monkeypatch.setattr(wandb, "SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    study = begin(tmp_path)
    with (
        pytest.raises(CliptuneError, match="`--log wandb` must reach") as caught,
        recording(["wandb"], study, tmp_path),
    ):
        pass
    assert "0123456789" not in str(caught.value)
    Wandb(tmp_path).open()


def test_who_is_logged_in_has_a_key_in_the_environment_or_in_the_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not logged_in()
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert logged_in()
