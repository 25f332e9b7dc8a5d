"""What the page says of the index of a search, and that both ways answer alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import index
from trainables.files import write_json


def test_the_page_has_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index.section(tmp_path) == []
    monkeypatch.setattr(index, "PART", 512)
    runs = index.measure(index.Args(2_000, 1), "in groups", tmp_path / "index")
    assert [(run.queries, run.rows, run.differ) for run in runs] == [(1, 2_000, 0), (16, 2_000, 0)]
    write_json(tmp_path / index.FILE, [vars(run) | {"ratio": 5.25} for run in runs])
    text = "\n".join(index.section(tmp_path))
    assert "the 100 nearest of\n2,000 vectors 512 wide" in text
    assert "| in groups | 16 |" in text
    assert "| 5.2x | 0 |" in text
