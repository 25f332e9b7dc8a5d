"""Spaces of few points: no point is tried twice, and where none is left the search says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.search import Searcher

from pipelines.report.study import read_study
from pipelines.tune.__main__ import run as tune
from pipelines.tune.args import Args
from pipelines.tune.callbacks import Progress
from pipelines.tune.flags import check
from pipelines.tune.samplers.race import Runner, turn
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.study.finite import number_of, size, untried, values_of
from pipelines.tune.study.kinds import Sampler
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import open_study
from search_spaces.common import Space, choice
from search_spaces.registry import SPACES
from trainables.trials.jobs import Job

METRIC = "val/t2i_r1"
ALONE = Search(("zero_shot",), METRIC, trials=24, epochs=9, seed=3, fixed={})
TEMPLATES = len(SPACES["zero_shot"]["retrieval"]["adapter.template"].choices)  # type: ignore[attr-defined]
SPACE: Space = {
    "choice": choice(None, "a", 2.0),
    "whole": IntDistribution(2, 8, step=3),
    "log": IntDistribution(1, 4, log=True),
    "step": FloatDistribution(0.1, 0.4, step=0.1),
    "one": FloatDistribution(0.5, 0.5),
}


def searcher(folder: Path, search: Search, fuse: int = 1) -> StudySearcher:
    return StudySearcher(open_study(folder), search, folder, fuse)


def row(number: int, value: float, state: str = "finished") -> dict[str, Any]:
    return {
        **{"number": number, "epoch": 9, METRIC: value, "best": value, "best_epoch": 9},
        **{"state": state, "seconds": 1.0, "trainable_parameters": 8, "reason": "x"},
    }


def tried(asks: StudySearcher, adapter: str = "zero_shot") -> list[tuple[Any, ...]]:
    """The points of an adapter's trials, in their order."""
    trials = asks.study.get_trials(deepcopy=False)
    own = [trial for trial in trials if trial.user_attrs["config"]["name"] == adapter]
    names = asks.search.searched(adapter)
    return [tuple(trial.user_attrs["config"][name] for name in names) for trial in own]


def run(asks: StudySearcher, most: int = 100) -> int:
    """Trials until the search ends."""
    for count in range(most):
        job = asks.suggest(f"ray{count}")
        if job == Searcher.FINISHED:
            return count
        values = {"zero_shot": 0.9}  # it leads
        rows = [row(one.number, values.get(one.values["name"], 0.1)) for one in Job(**job).all]
        asks.on_trial_complete(f"ray{count}", rows[0] | {"members": rows})
    raise AssertionError("the search does not end")


def test_points_are_numbered() -> None:
    count = 3 * 3 * 4 * 4
    assert size(SPACE) == count
    points = [values_of(SPACE, number) for number in range(count)]
    assert len({tuple(one.values()) for one in points}) == count
    assert [number_of(SPACE, one) for one in points] == list(range(count))
    for one in points:
        for name, value in one.items():
            assert SPACE[name]._contains(SPACE[name].to_internal_repr(value))


@pytest.mark.parametrize("one", [FloatDistribution(0, 1), FloatDistribution(1, 2, log=True)])
def test_real_numbers_have_no_end_of_points(one: BaseDistribution) -> None:
    assert size({"choice": CategoricalDistribution((1, 2)), "real": one}) is None


def test_a_point_that_was_not_tried_is_found_where_there_is_one() -> None:
    found: set[int] = set()
    while point := untried(SPACE, {"choice": "a", "other": 1}, found, "seed"):
        assert point["choice"] == "a"
        found.add(number_of(SPACE, point))
    assert len(found) == 3 * 4 * 4


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp"])
def test_every_template_is_tried_once_and_the_search_ends(sampler: Sampler, tmp_path: Path) -> None:
    asks = searcher(tmp_path, dataclasses.replace(ALONE, sampler=sampler))
    assert run(asks) == TEMPLATES
    assert len(set(tried(asks))) == TEMPLATES
    assert asks.budget.over()
    said = f"`zero_shot` has no configuration left to try: all {TEMPLATES} were tried."
    assert asks.budget.tried.said() == [said]


@pytest.mark.parametrize(("trials", "minutes", "also"), [(24, 0.0, ""), (0, 9.0, ", 0.0/9 min")])
def test_the_line_of_progress_counts_towards_the_points_that_there_are(
    trials: int, minutes: float, also: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asks = searcher(tmp_path, dataclasses.replace(ALONE, trials=trials, minutes=minutes))
    progress = Progress(asks.study, asks.search, asks.budget)
    for number in range(TEMPLATES):
        ray: Any = SimpleNamespace(trial_id=f"ray{number}", config=asks.suggest(f"ray{number}"))
        asks.on_trial_complete(ray.trial_id, row(number, 0.5))
        progress.on_trial_complete(0, [], ray)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0][1:] for line in lines] == [
        f"{1 + number}/{TEMPLATES}{also}" for number in range(TEMPLATES)
    ]
    assert "about 0 s left" in lines[-1]


def test_the_report_of_a_search_that_ended_before_its_budget_waits_for_no_more(
    tmp_path: Path, features: Path
) -> None:
    args = Args(features, tmp_path, adapter=("zero_shot",), trials=40, portfolio=False)
    asks = searcher(tmp_path, check(args))
    assert run(asks) == TEMPLATES
    tune(args)
    study = read_study(tmp_path)
    assert (study.planned, study.unfinished) == (TEMPLATES, False)


def test_the_budget_counts_on_where_one_space_has_no_end(tmp_path: Path) -> None:
    search = dataclasses.replace(ALONE, adapters=("zero_shot", "projection"))
    assert searcher(tmp_path, search).budget.trials == search.trials


@pytest.mark.parametrize("trials", [TEMPLATES, TEMPLATES + 1])
def test_more_trials_than_points_is_said_before(
    trials: int, capsys: pytest.CaptureFixture[str]
) -> None:
    check(Args(Path("features"), adapter=("zero_shot",), trials=trials, portfolio=False))
    said = f"the search ends after {TEMPLATES} trials: no other configuration is there.\n"
    assert capsys.readouterr().out == said * (trials > TEMPLATES)


def test_what_still_runs_or_failed_was_tried(tmp_path: Path) -> None:
    asks = searcher(tmp_path, ALONE)
    for number in range(TEMPLATES):
        asks.suggest(f"ray{number}")
    assert len(set(tried(asks))) == TEMPLATES
    assert asks.suggest("more") is None  # one that runs may come back
    for number in range(TEMPLATES):
        asks.on_trial_complete(f"ray{number}", row(number, 0.5, "failed"))
    assert asks.suggest("more") == Searcher.FINISHED


def test_a_resumed_search_tries_the_same_points(tmp_path: Path) -> None:
    def points(folder: Path, restarts: bool) -> list[Any]:
        folder.mkdir()
        asks = searcher(folder, ALONE)
        for number in range(TEMPLATES):
            if restarts:
                asks = searcher(folder, ALONE)
            asks.suggest(f"ray{number}")
            asks.on_trial_complete(f"ray{number}", row(number, 0.5))
        assert searcher(folder, ALONE).suggest("more") == Searcher.FINISHED
        return tried(asks)

    assert points(tmp_path / "once", False) == points(tmp_path / "often", True)


def test_an_adapter_without_points_is_out_of_the_race_and_others_go_on(tmp_path: Path) -> None:
    search = dataclasses.replace(ALONE, adapters=("zero_shot", "projection"))
    asks = searcher(tmp_path, search)
    assert run(asks) == search.trials
    assert len(tried(asks)) == len(set(tried(asks))) == TEMPLATES
    race = asks.study.trials[-1].user_attrs["race"]
    assert (race["name"], race["out"]) == ("projection", ["zero_shot"])


def test_a_leader_without_points_hands_on_to_the_best_of_the_others() -> None:
    runners = [
        Runner("leads", 1, 5, 5, 45, [(9, [0.9])]),
        Runner("far", 1, 2, 2, 30, [(9, [0.1])]),
        Runner("near", 1, 2, 2, 30, [(9, [0.2])]),
    ]
    assert turn(runners, 0).name == "leads"
    found = turn(runners, 0, ["leads"])
    assert (found.name, set(found.cuts), found.out) == ("near", {"far"}, ["leads"])


def test_trials_that_train_together_are_as_many_as_their_shape_has_points(tmp_path: Path) -> None:
    spaces: dict[str, Space] = {
        "projection": {
            "optim.lr": choice(1e-3, 1e-2, 1e-1),
            "batch_size": choice(32, 64),
        }
    }
    search = dataclasses.replace(ALONE, adapters=("projection",), spaces=spaces)
    asks = searcher(tmp_path, search, fuse=4)
    run(asks)
    points = tried(asks, "projection")
    assert len(points) == len(set(points)) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_trials_that_differ_in_what_has_no_effect_are_one(sampler: Sampler, tmp_path: Path) -> None:
    """L-BFGS knows no learning rate, no weight decay and no batches: it leads, and is tried once
    from each start."""
    search = Search(("linear_probe",), "val/accuracy", 24, 9, 3, {}, "classification")
    asks = searcher(tmp_path, dataclasses.replace(search, sampler=sampler))
    solved = []
    for count in range(24):
        [job] = Job(**asks.suggest(f"ray{count}")).all
        if job.values["adapter.solver"] == "lbfgs":
            solved.append(job.values["adapter.init"])
        best = 0.9 if job.values["adapter.solver"] == "lbfgs" else 0.5
        one = row(job.number, best) | {"val/accuracy": best}
        asks.on_trial_complete(f"ray{count}", one | {"members": [one]})
    assert sorted(solved) == ["text", "zero"]
