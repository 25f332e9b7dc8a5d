"""Populations beside early stopping: equal epochs, test after the end, verdicts of the numbers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.searchers import cells, populations, record
from benchmarks.searchers.curves import Data
from benchmarks.searchers.populations import FILE, Options, main, section
from trainables.features.features import open_features
from trainables.files import read_json, write_json
from trainables.models.backbone import Backbone
from trainables.training.selection import METRICS


def test_all_spend_the_same_epochs_and_are_measured_by_what_they_hand_back(
    features: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "features").symlink_to(features)
    train, val = (open_features(features, split, backbone) for split in ("train", "val"))
    data = Data(backbone, train, val, test=val, task="retrieval")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(record, "load", lambda _: data)
    monkeypatch.setattr(populations, "SCHEDULERS", ("asha", "pbt"))  # pb2 loads scikit-learn
    monkeypatch.setitem(METRICS, "retrieval", ("val/i2t_mrr",))  # of few images finer than R@1
    monkeypatch.setitem(cells.DATA, "tiny", (lambda *_: (tmp_path, None), 0, (), 0))
    own = {"epochs": 24, "trials": 6, "val": 0.5, "test": 0.5, "handed back": 0.5}
    before = {"other": {"asha": [own], "pbt": [own]}}
    sizes = {"seeds": 1, "trials": 6, "epochs": 4, "cpu_minutes": {"other": 1.0}}
    write_json(tmp_path / FILE, sizes | {"cells": before})
    main(Options(only=("tiny.projection",), seeds=1, trials=6, epochs=4, out=tmp_path))
    every = read_json(tmp_path / FILE)["cells"]
    found = every.pop("tiny.projection")
    assert every == before
    for (one,) in found.values():
        assert one["epochs"] == 24
        assert one["val"] == one["test"]  # test is val here
    assert found["asha"][0]["trials"] > found["pbt"][0]["trials"] == 6
    assert [line.split()[1] for line in section(tmp_path) if "| `" in line] == ["`asha`", "`pbt`"]


def test_the_verdicts_are_those_of_the_numbers(tmp_path: Path) -> None:
    assert section(tmp_path)[-1] == f"`{populations.HOW}` was not run yet."

    def seeds(val: float, test: float, *uneven: float) -> list[dict[str, float]]:
        same = {"epochs": 9, "trials": 3, "val": val, "test": test}
        return [same | {"handed back": 0.3 + more} for more in uneven]

    own = {"asha": seeds(0.5, 0.4, 0.0, 0.0), "pbt": seeds(0.52, 0.37, 0.1, -0.1)}
    about = {"seeds": 2, "trials": 1, "epochs": 9, "cpu_minutes": {"a": 1.0}}
    write_json(tmp_path / FILE, about | {"cells": {"a": own, "b": own}})
    page = section(tmp_path)
    assert page[-1] == (
        "- `pbt` beside ASHA: 2.0 points better on val, 3.0 points worse on test, "
        "not shown to differ as handed back."
    )
    assert "| `pbt` | 9 | 3 | 52.00 | +2.00 | +2.00 to +2.00 | 37.00 | -3.00 |" in page[-3]
