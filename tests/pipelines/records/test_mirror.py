"""What a record keeper is told: all, once, and whenever it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipelines.records import kinds
from pipelines.records.keeper import About, Keeper, Row, State, measured
from pipelines.records.kinds import check_log
from pipelines.records.mirror import Mirror, Seen
from pipelines.tune import recording as module
from pipelines.tune.recording import about_study, recording, seen
from tests.recorded import METRIC, REASON, begin, finish
from trainables.errors import CliptuneError, ConfigError
from trainables.files import append_jsonl


class Book(Keeper):
    """A keeper that notes what it is told, and fails while `away`."""

    name = "book"
    away: ClassVar[bool] = False
    told: ClassVar[list[tuple[Any, ...]]] = []

    def open(self) -> None:
        self.where, self.look = self.folder.parent.name, ""

    def _note(self, *what: Any) -> None:
        if self.away:
            raise ConnectionError("nobody\nthere")
        self.told.append(what)

    def begin(self, about: About, parent: str | None) -> tuple[str, int]:
        had = [
            row
            for what, run, *rows in self.told
            if (what, run) == ("log", about.key)
            for row in rows
        ]
        self._note("begin", about.key, parent)
        return about.key, max(had, default=0)

    def log(self, run: str, rows: Sequence[Row]) -> None:
        self._note("log", run, *(row.epoch for row in rows))

    def end(
        self, run: str, state: State, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        self._note("end", run, state)

    def close(self) -> None:
        pass


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> type[Book]:
    monkeypatch.setattr(Book, "told", [])
    monkeypatch.setattr(Book, "away", False)
    monkeypatch.setattr(module, "KEEPERS", {"book": Book})
    return Book


def own(told: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The same with the study's key left out."""
    key = told[0][1]
    return [tuple(str(one).replace(key, "study") for one in what) for what in told]


def test_a_resumed_study_goes_on_in_its_runs_and_tells_nothing_twice(
    tmp_path: Path, book: type[Book]
) -> None:
    study = begin(tmp_path)
    with pytest.raises(KeyboardInterrupt), recording(["book"], study, tmp_path):  # type: ignore[list-item]
        raise KeyboardInterrupt
    assert own(book.told) == [
        ("begin", "study", "None"),
        *(("begin", "study-0000", "study"), ("log", "study-0000", "1", "2", "3")),
        ("end", "study-0000", "complete"),
        *(("begin", "study-0001", "study"), ("log", "study-0001", "1")),
        ("end", "study-0001", "pruned"),
        *(("begin", "study-0002", "study"), ("end", "study-0002", "failed")),
        *(("begin", "study-0003", "study"), ("log", "study-0003", "1")),
        ("end", "study", "interrupted"),
    ]
    before = len(book.told)
    with recording(["book"], study, tmp_path):  # type: ignore[list-item]
        finish(tmp_path, study)
    assert own(book.told)[before:] == [
        ("begin", "study", "None"),
        *(("begin", "study-0003", "study"), ("log", "study-0003", "2", "3")),
        *(("end", "study-0003", "complete"), ("end", "study", "complete")),
    ]


def test_a_keeper_that_is_away_is_said_once_and_told_when_it_is_back(
    tmp_path: Path, book: type[Book], capsys: pytest.CaptureFixture[str]
) -> None:
    study = begin(tmp_path)
    mirror = Mirror(book(tmp_path), tmp_path, about_study(tmp_path))
    trials = [seen(one, tmp_path) for one in study.trials]
    book.away = True
    assert "book lacks 4 runs, or parts of them: nobody there" in mirror.close(trials)
    said = capsys.readouterr().out
    assert said.count("warning: book could not be told: nobody there.") == 1
    book.away = False
    again = Mirror(book(tmp_path), tmp_path, about_study(tmp_path))
    assert again.close(trials) == f"book: {tmp_path.name}"
    assert [what for what in own(book.told) if what[0] == "log"] == [
        ("log", "study-0000", "1", "2", "3"),
        *(("log", "study-0001", "1"), ("log", "study-0003", "1")),
    ]


def test_at_another_place_all_is_told_anew(tmp_path: Path, book: type[Book]) -> None:
    study = begin(tmp_path)
    trials = [seen(one, tmp_path) for one in study.trials]
    for place in ("one", "two", "two"):
        keeper = book(tmp_path / place)
        Mirror(keeper, tmp_path, about_study(tmp_path)).close(trials)
    ended = [what[1] for what in own(book.told) if what[0] == "end"]
    assert ended == 2 * ["study-0000", "study-0001", "study-0002"]


def test_a_worker_that_is_ahead_of_the_journal_is_told_as_the_journal_has_it(
    tmp_path: Path,
) -> None:
    append_jsonl(tmp_path / "metrics.jsonl", [{"epoch": n, METRIC: n / 10} for n in (1, 2, 3)])
    rows = Seen(About("", ""), tmp_path, epochs=2, started=5.0).rows(after=1)
    assert [(row.epoch, row.metrics[METRIC], row.at) for row in rows] == [(2, 0.2, 5.0)]


def test_a_trial_is_told_with_its_values_its_state_and_its_reason(tmp_path: Path) -> None:
    found = seen(begin(tmp_path).trials[2], tmp_path)
    assert found.about.params["adapter"] == "soft_prompt"
    assert found.about.params["optim.lr"] == 0.01
    assert (found.state, found.tags["cliptune.reason"]) == ("failed", REASON)


def test_only_numbers_are_measured() -> None:
    row = {"a": 1, "b": 0.5, "c": True, "d": "x", "e": None, "f": float("nan"), "g": [1]}
    assert measured(row) == {"a": 1.0, "b": 0.5}


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    with pytest.raises(CliptuneError, match=r"pip install 'cliptune\[wandb\]'"):
        check_log(["wandb"])
    with pytest.raises(ConfigError, match="name each keeper once"):
        check_log(["mlflow", "mlflow"])
