"""What a driver's costs are measured on: the same suggestions both ways. Nothing is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import HERE
from benchmarks.harness import Case, difference
from benchmarks.searchers import costs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(costs, "TRIALS", 24)
    monkeypatch.setattr(costs, "MORE", 4)
    monkeypatch.setattr(costs, "history", lambda: tmp_path)
    costs.record(tmp_path)


def test_sums_made_anew_lead_to_the_same_suggestions(small: None) -> None:
    made: Case = costs.case("suggestion")
    assert difference(made.ours(), made.baseline())[0] == 0
    assert difference(made.ours(), made.ours())[0] == 0  # each call starts anew


def test_the_search_in_one_study_runs(small: None) -> None:
    made = costs.one_study()
    assert difference(made.ours(), made.baseline())[0] == 0


def test_the_page_has_what_was_measured(tmp_path: Path) -> None:
    assert costs.section(tmp_path) == []
    text = "\n".join(costs.section(HERE))
    assert all(f"| {row.name} |" in text for row in costs.ROWS)
