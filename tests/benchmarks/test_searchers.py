"""Searchers on recorded surfaces: by seed the same, with the regret that one computes by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import optuna
import pytest

from benchmarks.searchers.__main__ import Options, main, watched
from benchmarks.searchers.contest import Found, cell, cells, contenders, epochs, parse, spend
from benchmarks.searchers.policies import Cell, Now, Random
from benchmarks.searchers.sheet import EACH, FILE, METRIC, NOW, PLOT, interval, summary
from benchmarks.searchers.simulate import answers, boards, ceilings
from pipelines.tune.samplers.searcher import suggest
from pipelines.tune.study.search import Stopping
from trainables.errors import ConfigError

SMALL = "eurosat-16-1.clip_adapter"  # its space has three fields


@pytest.fixture(scope="module")
def small() -> Cell:
    return cell(SMALL)


@pytest.mark.parametrize("label", [label for one in contenders() for label in one.rules][:-1])
def test_a_seed_draws_the_same_again_and_spends_its_budget(small: Cell, label: str) -> None:
    (one,) = (one for one in contenders() if label in one.rules)
    first, again, other = (spend(one.make, small, 8, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert sum(trial.epochs for trial in first) == 8 * epochs(small)


def test_val_only_rises_and_ends_at_most_at_the_best(small: Cell) -> None:
    top = ceilings(small)
    for one in contenders():
        history = spend(one.make, small, 6, 2)
        found = answers(history, small, range(1, 6 * epochs(small) + 1), "metric")
        values = [answer.val for answer in found if answer is not None]
        assert len(values) == 6 * epochs(small)
        assert values == sorted(values)
        assert values[-1] <= top.val
    assert top.val == max(curves["val/accuracy"].max() for curves in whole(small))


def whole(own: Cell) -> list[dict[str, np.ndarray]]:
    return next(iter(own.values())).curves


def test_random_search_has_the_regret_that_one_computes_by_hand(small: Cell) -> None:
    surface, budget = small["clip_adapter"], 5
    history = spend(Random, small, budget, 3)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    best = (-1.0, -np.inf)
    for number in range(budget):
        trial = study.ask()
        config = {
            name: suggest(trial, f"clip_adapter/{name}", one) for name, one in surface.space.items()
        }
        curves = surface.answer(config)
        for epoch, reached in enumerate(
            zip(curves["val/accuracy"], curves["val/log_likelihood"], strict=True)
        ):
            if reached > best:
                best, test = reached, curves["test/accuracy"][epoch]
        (found,) = answers(history, small, [(number + 1) * epochs(small)], "metric")
        assert found is not None
        assert (found.val, found.test) == (best[0], test)


def test_the_choice_is_the_likeliest_of_those_within_two_standard_errors(small: Cell) -> None:
    history = spend(Random, small, 5, 4)
    ((found,), (plain,)) = (
        answers(history, small, [5 * epochs(small)], rule) for rule in ("choice", "metric")
    )
    assert found is not None
    assert plain is not None
    board = boards(small)["clip_adapter"]
    rows = [trial.row for trial in history]
    val, likely, test = (
        part[rows, -1] for part in (board.val, board.calibrated, board.test)
    )  # zero-shot is far below
    spread = val * (1 - val)
    both = spread + spread[val.argmax()] - np.sqrt(spread * spread[val.argmax()])
    near = val >= val.max() - 2 * np.sqrt(both / 40) - 1e-8
    assert 1 < near.sum() < len(near)
    at = np.where(near, likely, -np.inf).argmax()
    assert (found.val, found.test) == (val[at], test[at])
    assert plain.val == val.max()


@pytest.mark.parametrize("name", sorted({one for one in cells() if "." not in one}))
def test_what_was_recorded_is_searched_whatever_an_adapter_has_since(name: str) -> None:
    own = cell(name)
    search = Now(own, 90, 0).search
    for adapter, surface in own.items():
        starts = [*search.starts(adapter), *search.hints[adapter]]
        fields = [search.searched(adapter), *(start.values for start in starts)]
        assert all(one.keys() == surface.space.keys() for one in fields)


def test_options_reach_the_search(small: Cell) -> None:
    options = parse(["sampler=random", "grace=3", "kind=median"])
    search = Now(small, 90, 0, **options).search
    assert (search.sampler, search.stopping) == ("random", Stopping("median", grace=3))
    with pytest.raises(ConfigError, match=r"`--now`: unknown option `grase`.*`grace`"):
        parse(["grase=3"])


def test_adapters_beside_each_other_are_near_the_one_that_is_best_alone() -> None:
    found = [
        Found(
            "data",
            seed,
            reached={NOW: {24: 50.0 + seed}},
            alone={"a": {24: 51.0}, "b": {24: 40.0 + 20 * seed}},
        )
        for seed in (0, 1)
    ]
    (row,) = summary(found, {"minutes": 0.0})["together"][NOW]
    assert row["best"] == {"data": "a"}
    assert row["near"][0] == 1.0  # 50 and 51 of 51
    assert row["near_any"][0] == 0.5  # at seed 1, b reaches 60
    assert row["gap_mean"][0] == 0.5


def test_an_interval_holds_its_middle() -> None:
    values = np.random.default_rng(0).normal(size=(6, 10))
    middle, low, high = interval(values)
    assert middle == pytest.approx(np.median(values), abs=1e-4)
    assert low < middle < high
    assert interval(values) == [middle, low, high]


def test_cells_are_surfaces_and_data_sets() -> None:
    known = cells()
    assert known[SMALL] == [SMALL]
    assert "flickr8k.zero_shot" in known["flickr8k"]
    assert "flickr8k.zero_shot" not in known  # nothing to search


def test_progress_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 20.0, 21.0])
    monkeypatch.setattr("benchmarks.searchers.__main__.time.monotonic", lambda: next(clock))
    said: list[str] = []
    assert len(list(watched([Found("x", n) for n in range(3)], 4, said.append))) == 3
    assert said == ["2 of 4, 0.1 a second, 20 s left"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Options(1, 1, (SMALL, "scenes"), together=(4,), out=tmp_path))
    stored = json.loads((tmp_path / FILE).read_text())
    assert stored["cells"] == [SMALL]
    assert stored["data"] == ["scenes"]
    assert set(stored["together"]) == {*stored["regret"], EACH}
    assert (tmp_path / PLOT).stat().st_size < 100_000
    page = capsys.readouterr().out
    assert "| random | 64 |" in page
    assert f"| {METRIC} | 16 |" in page
    with pytest.raises(ConfigError, match=r"`--only`: unknown cell `scenez`.*`scenes`"):
        main(Options(only=("scenez",), out=tmp_path))
