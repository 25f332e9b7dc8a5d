"""The notebook of the docs, run by a kernel of its own, says what it says there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests import ROOT

NOTEBOOK = ROOT / "docs/example.ipynb"
STAND = ("made.splits", "embeds.shape, embeds.dtype")  # cells whose answer no race decides


def answers(cell: Any) -> list[Any]:
    """What a cell shows, but for bars and warnings."""
    return [
        output
        for output in cell.get("outputs", ())
        if output.get("name") != "stderr" and output.get("data", {}).get("text/html") != ""
    ]


@pytest.mark.slow
def test_it_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    written = nbformat.read(NOTEBOOK, as_version=4)
    run = nbformat.from_dict(written)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(run, timeout=600, kernel_name="python3", resources=where).execute()
    stood = 0
    for there, here in zip(written.cells, run.cells, strict=True):
        kinds = [[sorted(one.get("data", ["text"])) for one in answers(c)] for c in (there, here)]
        assert kinds[0] == kinds[1]
        if there.source.splitlines()[-1] in STAND:
            assert answers(there)[-1]["data"] == answers(here)[-1]["data"]
            stood += 1
    assert stood == len(STAND)
