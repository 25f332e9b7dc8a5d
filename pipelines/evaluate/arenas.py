"""The arena on test: every cell's winner, chosen on val, on the sealed split of its data.

Flows in: the arena's folder and the seal of test. Flows out: the value of `arena.json`. A cell's
measurement is kept beside it, with the hash of the checkpoint, so that only new cells are measured
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from pipelines.arena.cells import FORMAT
from pipelines.arena.literature import LITERATURE
from pipelines.arena.plan import (
    Cell,
    Plan,
    Source,
    cell_folder,
    draw_of,
    read_plan,
    store_of,
)
from pipelines.console import say
from pipelines.hold import refuse_links
from trainables.adapters.base import Adapter
from trainables.adapters.registry import build
from trainables.data.shards import Seal, ShardSet
from trainables.data.store import find_store, read_manifest
from trainables.errors import DataError
from trainables.features.features import backbone_of, embed_split
from trainables.features.manifest import precision_of
from trainables.features.split import SplitFeatures
from trainables.files import now, read_json, sha256_json, write_json
from trainables.hardware import default_device
from trainables.metrics.balance import harmonic
from trainables.metrics.calibration import TIMES, Calibration
from trainables.metrics.calibration_error import calibration_error
from trainables.metrics.classification import by_class, hits
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import load_adapter, read_config
from trainables.training.integrity import digest, verify
from trainables.training.predict import score

Entry = dict[str, Any]
FOUND = ("accuracy", "per_class", "correct", "tests", "ece")  # of a run, by the accuracy's name


def identity(folder: Path) -> str:
    """A value that is equal for two calls that would measure the same."""
    refuse_links(folder)
    plan = read_plan(folder)
    return sha256_json([[cell.name, *_standing(folder, cell)] for cell in plan.cells()])


def _standing(folder: Path, cell: Cell) -> tuple[str, str]:
    """Whether the cell is done, failed or pending; with the hash of its winner, or the reason of
    its failure."""
    own = cell_folder(folder, cell)
    if (own / "cell.json").exists():
        found = read_json(own / "cell.json")
        if found["state"] == "failed":
            return "failed", found["reason"]
        verify(_winner(folder, cell))
        return "done", digest(_winner(folder, cell))
    if (own / "failed.json").exists():
        return "failed", read_json(own / "failed.json")["reason"]
    return "pending", ""


class Tests:
    """The test splits, embedded once each, and the classes of each task among them."""

    def __init__(self, folder: Path, plan: Plan, backbone: Backbone, seal: Seal) -> None:
        self.folder, self.plan, self.backbone, self.seal = folder, plan, backbone, seal
        self.pixels = any(_needs_pixels(folder, cell, backbone) for cell in plan.cells())
        self.splits: dict[str, tuple[SplitFeatures, list[Any]]] = {}
        self.parts: dict[str, SplitFeatures] = {}
        self.pooled: set[str] = set()  # data of which each draw leaves another test

    def whole(self, source: Source) -> tuple[SplitFeatures, list[Any]]:
        if source.name not in self.splits:
            store = find_store(store_of(self.folder, source.name))
            shards, made_of = ShardSet.open(source.shards), read_manifest(store)
            if shards.digest != made_of["shards_sha256"]:
                raise DataError(f"`{shards.folder}` changed since `{store}` was made of it.")
            doing = "reading" if shards.embedded else "embedding"
            say(f"{doing} the {shards.splits['test']['images']:,} test images of {source.name}")
            own = replace(self.backbone, precision=precision_of(store))
            if shards.pooled:
                self.pooled.add(source.name)
            data = embed_split(own, shards, "test", seal=self.seal, pixels=self.pixels)
            rows = list(shards.rows("test", ["id", "label"], self.seal))
            self.splits[source.name] = (data, rows)
        return self.splits[source.name]

    def of(self, source: Source, part: str, cell: Cell) -> tuple[str, SplitFeatures]:
        """The test images of a part's classes for a cell, and a name for them. Names and template
        are the same for all draws; the images too, unless draws alone divide them."""
        whole = self.whole(source)
        shots, seed = self.plan.shots[0], self.plan.seeds[0]
        if source.name in self.pooled:
            shots, seed = cell.shots, cell.seed
        name = f"{source.name}-{shots}-{seed}-{part}"
        if name not in self.parts:
            found = draw_of(self.folder, name).among(*whole).one_row_an_image()
            assert found.labels is not None
            about = {"images": found.groups.tolist(), "labels": found.labels.tolist()}
            write_json(_test_path(self.folder, name), about)
            self.parts[name] = found
        return name, self.parts[name]


def _test_path(folder: Path, name: str) -> Path:
    """The file that says which images were measured on: equal numbers are equal bytes."""
    return folder / "tests" / f"{name}.json"


def _needs_pixels(folder: Path, cell: Cell, backbone: Backbone) -> bool:
    if _standing(folder, cell)[0] != "done":
        return False
    return build(read_config(_winner(folder, cell)), backbone).image_block is not None


def _winner(folder: Path, cell: Cell) -> Path:
    """The checkpoint that val chose."""
    own = cell_folder(folder, cell)
    return own / read_json(own / "best.json")["path"] / "best"


def measure_arena(folder: Path, seal: Seal) -> Entry:
    """The value of `arena.json`."""
    plan = read_plan(folder)
    first = find_store(store_of(folder, plan.sources[0].name))
    backbone = backbone_of(first, default_device())
    tests = Tests(folder, plan, backbone, seal)
    names, cells = {source.name for source in plan.sources}, list(plan.cells())
    entries = [
        entry
        for cell in tqdm(cells, "measuring", unit="cell")
        for entry in _entries(folder, plan, cell, tests)
    ]
    return {
        "format": FORMAT,
        "created": now(),
        "metric": plan.metric,
        "backbone": {
            "name": backbone.name,
            "revision": backbone.revision,
            "fingerprint": backbone.fingerprint,
        },
        "budget": {"trials": plan.trials, "seconds": plan.seconds or None, "epochs": plan.epochs},
        "adapters": list(plan.adapters),
        "cells": entries,
        "tests": {
            name: read_json(_test_path(folder, name))
            for name in sorted({name for one in entries for name in one["tests"].values()})
        },
        "literature": [one for one in LITERATURE if one["dataset"] in names],
    }


def _entries(folder: Path, plan: Plan, cell: Cell, tests: Tests) -> Iterator[Entry]:
    """A cell's rows of the arena: one for each protocol that it serves."""
    source = next(one for one in plan.sources if one.name == cell.dataset)
    state, detail = _standing(folder, cell)
    own = cell_folder(folder, cell)
    cost = read_json(own / "cell.json") if state == "done" else {}
    row: Entry = {
        **{"dataset": cell.dataset, "shots": cell.shots, "seed": cell.seed},
        **{"adapter": cell.adapter, "state": state},
        "reason": detail if state == "failed" else None,
        **{name: cost.get(name) for name in ("val", "trials", "seconds", "trainable_parameters")},
    }
    wanted = list(_wanted(folder, plan, source, cell))
    if state != "done":
        for protocol, target, _ in wanted:
            empty: Entry = {name: {} for name in FOUND}
            yield row | {"protocol": protocol, "target": target} | empty
        return
    kept = read_json(own / "test.json") if (own / "test.json").exists() else {}
    adapter: Adapter[Any] | None = None
    for protocol, target, parts in wanted:
        key = f"{protocol}/{target or cell.dataset}"
        if kept.get(key, {}).get("digest") != detail or not kept[key].keys() >= {*FOUND}:
            if adapter is None:
                adapter = load_adapter(_winner(folder, cell), tests.backbone)
            kept[key] = _measure(adapter, parts, tests, cell) | {"digest": detail}
            write_json(own / "test.json", kept)
        found = {name: kept[key][name] for name in FOUND}
        if target and found["accuracy"]["all"] is None:
            continue  # it cannot name the other classes
        yield row | {"protocol": protocol, "target": target} | found


Parts = dict[str, tuple[Source, str]]  # the name of an accuracy: the data set and part it is of


def _wanted(
    folder: Path, plan: Plan, source: Source, cell: Cell
) -> Iterator[tuple[str, str | None, Parts]]:
    """The protocols that a cell is measured for: (protocol, other data set, parts). Other data with
    the same classes is a shift; with other classes it is a transfer."""
    if cell.part == "base":
        yield "base_to_new", None, {"base": (source, "base"), "new": (source, "new")}
        return
    if "all" in plan.protocols:
        yield "all", None, {"all": (source, "all")}
    names = draw_of(folder, cell.task).names
    for other in plan.sources:
        if other.name != source.name and {"transfer", "shift"} & set(plan.protocols):
            task = f"{other.name}-{cell.shots}-{cell.seed}-all"
            protocol = "shift" if draw_of(folder, task).names == names else "transfer"
            if protocol in plan.protocols:
                yield protocol, other.name, {"all": (other, "all")}


def _measure(adapter: Adapter[Any], parts: Parts, tests: Tests, cell: Cell) -> Entry:
    accuracy: dict[str, float | None] = {}
    per_class, correct, measured, ece = {}, {}, {}, {}
    for name, (source, part) in parts.items():
        test, data = tests.of(source, part, cell)
        assert data.classes is not None
        assert data.labels is not None
        own = adapter.classes is not None and adapter.classes.names == data.classes.names
        if not own and not adapter.open_classes:
            accuracy[name] = None
            continue
        scores = score(adapter, data, data.classes)
        right = hits(scores, data.labels)
        accuracy[name] = float(right.mean())
        means = by_class(right, data.labels, len(data.classes)).tolist()
        per_class[name] = dict(zip(data.classes.names, means, strict=True))
        correct[name] = "".join("01"[int(value == 1)] for value in right.tolist())
        measured[name] = test
        if adapter.calibration is not None:
            ece[name] = _errors(adapter.calibration, scores, right)
    if "new" in parts:
        base, new = accuracy["base"], accuracy["new"]
        accuracy["harmonic"] = None
        if base is not None and new is not None:
            accuracy["harmonic"] = harmonic(base, new)
    return dict(zip(FOUND, (accuracy, per_class, correct, measured, ece), strict=True))


def _errors(calibration: Calibration, scores: Tensor, right: Tensor) -> dict[str, float]:
    """The calibration error before and after the temperature that was fitted on the cell's val."""
    shares = [calibration.probabilities(scores, fitted).max(1).values for fitted in (False, True)]
    errors = (calibration_error(confidences, right) for confidences in shares)
    return dict(zip(TIMES, errors, strict=True))
