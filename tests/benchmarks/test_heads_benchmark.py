"""What the page, the README and the docs say of heads on a real CLIP's features."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import heads
from benchmarks.heads import Reached
from tests import ROOT
from trainables.files import write_json

ROWS = [
    Reached("gda", 1, 80.25, 78.0, 82.5, (80.0, 80.5), 1.5),
    Reached("gda", 4, 90.04, 89.0, 91.0, (90.04, 90.04), 2.26),
]


def test_an_image_that_two_draws_leave_is_resampled_as_one() -> None:
    tests: Any = {
        (4, 1): SimpleNamespace(ids=["a", "b", "c", "d"]),
        (4, 2): SimpleNamespace(ids=["b", "a", "d", "c"]),
    }
    once = torch.tensor([1.0, 1.0, 1.0, 0.0])
    same = heads._reached("gda", 4, tests, {1: once, 2: once[[1, 0, 3, 2]]}, 2.0)
    alone = heads._reached("gda", 4, tests, {1: once}, 2.0)
    assert (same.accuracy, same.by_seed) == (75.0, (75.0, 75.0))
    assert (same.low, same.high) == (alone.low, alone.high)
    other = heads._reached("gda", 4, tests, {1: once, 2: once}, 2.0)
    assert other.high - other.low < same.high - same.low
    assert other.accuracy == 75.0


def test_the_page_has_a_table_for_each_backbone(tmp_path: Path) -> None:
    assert heads.section(tmp_path) == []
    write_json(tmp_path / heads.FILE, {"RN50": [asdict(row) for row in ROWS]})
    assert heads.read(tmp_path) == {"RN50": ROWS}
    text = "\n".join(heads.section(tmp_path))
    assert "`python -m benchmarks.heads --data whurs19/RN50`" in text
    assert "### RN50\n\n| | 1 shot | 4 shots | s |\n|---|---|---|---|\n" in text
    assert "| `gda` | 80.2 [78.0, 82.5] | 90.0 [89.0, 91.0] | 2.3 |" in text


def test_the_readme_and_the_docs_show_what_was_measured() -> None:
    measured = heads.read(heads.HERE)
    if not measured:
        pytest.skip("nothing was measured")
    for page in ("README.md", "docs/real.md"):
        assert "\n".join(heads.table(measured["ViT-B-32"])) in (ROOT / page).read_text()
