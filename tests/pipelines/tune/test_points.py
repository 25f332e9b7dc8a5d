"""The points that are tried after the recipes: which, in which order, and where they are from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from benchmarks.searchers import portfolio as made
from benchmarks.searchers.surfaces import FOLDER, Surface
from pipelines.tune import __main__ as tune
from pipelines.tune import flags as tune_flags
from pipelines.tune.samplers import points as tune_points
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.schedulers.population import PopulationSearcher
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import open_study
from search_spaces.notation import contains
from search_spaces.portfolio import portfolio
from search_spaces.registry import SPACES
from trainables.adapters.registry import make_config
from trainables.config import Task
from trainables.errors import CliptuneError
from trainables.files import read_json, write_hashed

METRIC = "val/t2i_r1"
SHIPPED: list[tuple[str, Task]] = [
    (name, task)  # type: ignore[misc]
    for name, own in SPACES.items()
    for task in own
    if portfolio(name, task)  # type: ignore[arg-type]
]


def check(features: Path, out: Path, **more: Any) -> Search:
    return tune_flags.check(tune.Args(features, out, **{"adapter": ("projection",), **more}))


def drawn(folder: Path, search: Search, count: int) -> list[dict[str, Any]]:
    """The first trials' attributes; none of them ends."""
    asks = StudySearcher(open_study(folder), search, folder)
    for number in range(count):
        asks.suggest(f"ray{number}")
    return [trial.user_attrs for trial in asks.study.get_trials()]


@pytest.mark.parametrize(("name", "task"), SHIPPED)
def test_shipped_points_lie_in_the_adapters_space(name: str, task: Task) -> None:
    points, space = portfolio(name, task), SPACES[name][task]
    assert len(points) == 4
    for point in points:
        assert point.keys() == space.keys()
        assert all(contains(space[field], value) for field, value in point.items())
        make_config(name, {"task": task, **point})


def test_points_are_of_the_searchs_epochs_and_so_are_changes_that_all_trials_have() -> None:
    fixed: dict[str, Any] = {"changes": "25: optim.lr=0.001"}  # past the recipe's epochs
    search = Search(("soft_prompt",), METRIC, 16, 60, 0, fixed)
    points = tune_points.shipped_points("soft_prompt", "retrieval")
    assert len(tune_points.fitting(search, "soft_prompt", points)) == len(points) == 4


def test_the_portfolio_is_what_its_script_makes() -> None:
    surfaces = [Surface.load(path) for path in sorted(FOLDER.glob("*.soft_prompt.parquet"))]
    points = [made.rounded(one, surfaces[0].space) for one in made.portfolio(surfaces)]
    assert points == portfolio("soft_prompt", "retrieval")


def test_points_come_after_the_recipes_as_trials_like_others(
    tmp_path: Path, features: Path
) -> None:
    search = check(features, tmp_path, adapter=("projection", "soft_prompt"), trials=16)
    trials = drawn(tmp_path, search, 16)
    own = [one for one in trials if one["config"]["name"] == "projection"]
    assert [one["origin"] for one in trials[:4]] == ["recipe", "recipe", "portfolio", "portfolio"]
    origins = [one["origin"] for one in own]
    assert origins[:5] == ["recipe", *["portfolio"] * 4]
    assert set(origins[5:]) == {"tpe"}
    shipped = portfolio("projection", "retrieval")
    for trial, point in zip(own[1:], shipped, strict=False):
        assert {field: trial["config"][field] for field in point} == point


def test_a_budget_for_the_recipes_alone_is_enough(tmp_path: Path, features: Path) -> None:
    assert check(features, tmp_path, trials=1).hints["projection"]
    with pytest.raises(CliptuneError, match=r"at least 2 for the published recipes"):
        check(features, tmp_path, adapter=("projection", "lora"), trials=1)


def test_points_outside_are_left_out_and_said(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = check(features, tmp_path, search=("optim.lr=1e-5..1e-4:log",))
    out = capsys.readouterr().out
    left = [point["optim.lr"] for point in portfolio("projection", "retrieval")]
    outside = sum(not 1e-5 <= lr <= 1e-4 for lr in left)  # type: ignore[operator]
    assert len(search.hints["projection"]) == len(left) - outside
    assert out.count("of the portfolio, whose `optim.lr`") == outside
    assert out.startswith("`projection` goes without point ")
    assert not check(features, tmp_path, portfolio=False).hints["projection"]


def test_what_is_fixed_stays_and_what_only_that_told_apart_is_one(
    tmp_path: Path, features: Path
) -> None:
    fields = set(SPACES["projection"]["retrieval"]) - {"adapter.side"}
    recipe = Surface.load(FOLDER / "flickr8k.projection.parquet").recipes[0]
    shown = {name: "none" if value is None else value for name, value in recipe.items()}
    fixed = tuple(f"{name}={value}" for name, value in shown.items() if name in fields)
    hints = check(features, tmp_path, set=fixed).hints["projection"]
    sides = [dict(one.values) for one in hints]
    assert all(one.keys() == {"adapter.side"} for one in sides)
    assert len({str(one) for one in sides}) == len(sides)


def test_a_resumed_search_has_the_points_that_it_began_with(
    tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = check(features, tmp_path)
    args = tune.Args(features, tmp_path, adapter=("projection",))
    tune._claim(tmp_path, args, search)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tune.samplers.points.portfolio", lambda *_: [])
        again = check(features, tmp_path)
        tune._claim(tmp_path, args, again)
        assert again.hints == search.hints
    with pytest.raises(CliptuneError, match="holds another study: its `portfolio` is True"):
        tune._claim(tmp_path, tune.Args(features, adapter=args.adapter, portfolio=False), again)
    about = read_json(tmp_path / "study.json")
    for name in ("hints", "portfolio"):  # as older ones
        del about[name]
    write_hashed(tmp_path / "study.json", about)
    older = check(features, tmp_path)
    assert not older.hints["projection"]
    tune._claim(tmp_path, args, older)


def test_trials_killed_and_lost_skip_no_point(tmp_path: Path, features: Path) -> None:
    search = check(features, tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").mkdir()
    whole = drawn(tmp_path / "whole", search, 6)
    first = drawn(tmp_path / "cut", search, 3)
    study = open_study(tmp_path / "cut")
    study.tell(2, state=TrialState.FAIL)
    rest = StudySearcher(open_study(tmp_path / "cut"), search, tmp_path / "cut")
    numbers = [rest.suggest(f"again{n}")["number"] for n in range(5)]
    assert numbers == [0, 1, 3, 4, 5]
    trials = [trial.user_attrs for trial in rest.study.get_trials()]
    assert trials == whole
    assert first == whole[:3]


# -- earlier searches -------------------------------------------------------------------------


def earlier(folder: Path, data: str = "a", count: int = 5, **more: Any) -> Path:
    """A study of projection, whose later trials are better."""
    asked: dict[str, Any] = {"trials": count, "seed": len(data), **more}
    adapters = asked.pop("adapters", ("projection",))
    search = Search(adapters, METRIC, asked.pop("trials"), 1, asked.pop("seed"), {}, **asked)
    folder.mkdir(parents=True)
    about = {"task": search.task, "features_key": data, "adapters": list(adapters)}
    write_hashed(folder / "study.json", about)
    asks = StudySearcher(open_study(folder), search, folder)
    for number in range(count):
        asks.suggest("ray")
        reached = number / 10
        result = {"number": number, "epoch": 1, search.metric: reached, "best": reached}
        result |= {"best_epoch": 1, "state": "finished", "seconds": 1.0, "done": True}
        asks.on_trial_complete("ray", result | {"trainable_parameters": 1})
    return folder


def sources(search: Search, adapter: str = "projection") -> list[str]:
    return [one.source for one in search.hints[adapter] if one.origin == "prior"]


def test_the_best_of_earlier_searches_come_before_the_portfolio(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = earlier(tmp_path / "one"), earlier(tmp_path / "other", "bb")
    before = (one / "journal.log").read_bytes()
    search = check(features, tmp_path / "new", prior=(one, other))
    expected = [f"trial {n} of {study}" for n in (4, 3) for study in (one, other)]
    assert sources(search) == expected
    assert f"`projection` tries after its recipes: {expected[0]}," in capsys.readouterr().out
    assert [start.origin for start in search.hints["projection"]] == ["prior"] * 4 + [
        "portfolio"
    ] * 4
    (tmp_path / "new").mkdir()
    trials = drawn(tmp_path / "new", search, 3)
    assert [trial.get("source") for trial in trials] == [None, *expected[:2]]
    was = open_study(one).trials[4].user_attrs["config"]
    same = SPACES["projection"]["retrieval"].keys()
    assert all(trials[1]["config"][name] == was[name] for name in same)
    assert (one / "journal.log").read_bytes() == before
    assert sorted(path.name for path in one.iterdir()) == [
        *("best.json", "journal.log", "journal.sums", "study.json")
    ]


def test_of_many_studies_each_data_set_comes_before_a_second_of_one(
    tmp_path: Path, features: Path
) -> None:
    """An arena holds a study for each cell, in folders below it."""
    arena = tmp_path / "arena"
    for seed, cell in enumerate(("a-1", "a-2", "b-1", "b-2")):
        earlier(arena / "cells" / cell / "projection", cell[0], seed=seed)
    earlier(arena / "cells" / "b-2" / "soft_prompt", "b", adapters=("soft_prompt",))
    search = check(features, tmp_path / "new", prior=(arena,), adapter=("projection", "lora"))
    cells = [Path(one.partition(" of ")[2]).parent.name for one in sources(search)]
    assert cells == ["a-1", "b-1", "a-2", "b-2"]
    assert sources(search, "lora") == []


def test_earlier_points_outside_are_left_out_and_said(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = earlier(tmp_path / "one", count=1)  # the recipe, which is tried anyway
    assert sources(check(features, tmp_path / "new", prior=(one,))) == []
    assert "goes without" not in capsys.readouterr().out
    flags = ("optim.lr=1..2",)
    check(features, tmp_path / "new", prior=(one,), search=flags, portfolio=False)
    said = f"`projection` goes without trial 0 of {one}, whose `optim.lr` 1e-4 is outside 1..2."
    assert said in capsys.readouterr().out
    check(features, tmp_path / "new", prior=(one,), adapter=("lora",))
    assert "no trial of `lora` ended in what `--prior` names." in capsys.readouterr().out


def test_what_is_no_prior_is_refused_before_any_work(tmp_path: Path, features: Path) -> None:
    classes = earlier(tmp_path / "classes", task="classification", count=1, adapters=("coop",))
    with pytest.raises(CliptuneError) as error:
        check(features, tmp_path / "new", prior=(classes,))
    assert str(error.value) == (
        "`--prior` must be searches for retrieval as this one, "
        f"got `{classes}`, which is for classification."
    )
    for folder in (tmp_path / "missing", features):
        with pytest.raises(CliptuneError, match="in which no study was begun"):
            check(features, tmp_path / "new", prior=(folder,))
    (classes / "journal.log").write_text("x\ny\n")
    write_hashed(classes / "study.json", {"task": "retrieval"})
    with pytest.raises(CliptuneError, match=r"journal\.log` was shortened since it was written"):
        check(features, tmp_path / "new", prior=(classes,))
    assert not (tmp_path / "new").exists()


def test_a_resumed_search_reads_no_earlier_one_again(tmp_path: Path, features: Path) -> None:
    one, out = earlier(tmp_path / "one"), tmp_path / "new"
    args = tune.Args(features, out, adapter=("projection",), prior=(one,))
    search = tune_flags.check(args)
    tune._claim(out, args, search)
    shutil.rmtree(one)
    again = tune_flags.check(args)
    tune._claim(out, args, again)
    assert again.hints == search.hints
    other = dataclasses.replace(args, prior=(tmp_path / "two",))
    with pytest.raises(CliptuneError, match="holds another study: its `prior` is"):
        tune._claim(out, other, tune_flags.check(other))


def test_a_population_begins_with_the_points_too(tmp_path: Path, features: Path) -> None:
    search = check(features, tmp_path, trials=4, scheduler="pbt", prior=(earlier(tmp_path / "x"),))
    asks = PopulationSearcher(open_study(tmp_path), search, tmp_path)
    asks.suggest("ray")
    found = [trial.user_attrs["origin"] for trial in asks.study.get_trials()]
    assert found == ["recipe", *["prior"] * 3]
