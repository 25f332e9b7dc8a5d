"""The race between adapters, told: by `tune` when it ends, and in the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from pipelines.report import __main__ as report
from pipelines.report.race_chart import lanes_of
from pipelines.report.study import OVER, read_study
from pipelines.tune.closing import closing
from pipelines.tune.study.lanes import Step, lanes
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import OVER as noted_by_search

METRIC = "val/t2i_r1"
ADAPTERS = ("lora", "projection", "zero_shot")


def cut(best: float, leads: float, out: Any = ()) -> dict[str, Any]:
    own = {"spent": 9.0, "best": best, "leader": "lora", "leads": leads}
    return {"name": "lora", "cuts": {"projection": own}, "out": out}


STEPS = [
    Step(0, "lora", 9, 0.3, {"name": "lora", "cuts": {}, "out": []}),
    Step(1, "projection", 9, 0.2, {"name": "projection", "cuts": {}, "out": []}),
    Step(2, "zero_shot", 1, 0.1, {"name": "zero_shot", "cuts": {}, "out": []}),
    Step(3, "lora", 3, 0.25, cut(0.2, 0.3)),
    Step(4, "projection", 1, None, {"name": "projection", "cuts": {}, "out": []}),  # it failed
    Step(5, "lora", 9, 0.4, {}),  # one that trained with others
    Step(6, "lora", 1, 0.2, cut(0.2, 0.4, ["zero_shot"])),
]


def show(value: float) -> str:
    return f"{value:.2f}"


def test_each_adapter_has_what_it_spent_and_reached() -> None:
    found = {one.adapter: one for one in lanes(ADAPTERS, STEPS)}
    assert list(found) == ["lora", "projection", "zero_shot"]  # the best first
    lora, projection, zero_shot = found.values()
    assert (lora.trials, lora.spent, lora.best, lora.best_trial) == (4, 22, 0.4, 5)
    assert lora.path == [(9, 0.3), (12, 0.3), (21, 0.4), (22, 0.4)]
    assert (projection.trials, projection.spent, projection.best) == (2, 10, 0.2)
    assert lora.said(show) == ""
    assert zero_shot.said(show) == "no configuration left to try from trial 6 on"


def test_who_was_passed_over_is_told_with_when_and_the_numbers() -> None:
    projection = lanes(ADAPTERS, STEPS)[1]
    first, last = projection.stretches
    assert (first.first, first.last, first.after) == (3, 3, 19)
    assert (first.spent, first.best, first.leader, first.leads) == (9, 0.2, "lora", 0.3)
    assert projection.waits is last
    assert projection.said(show) == (
        "dropped again from trial 6 on, 32 epochs into the search: 0.20 with 9 of its own, "
        "where lora had 0.40"
    )
    until = lanes(ADAPTERS, STEPS[:5])[1].said(show)
    assert until.startswith("dropped from trial 3 to 3, 19 epochs into the search")


def test_an_adapter_without_a_trial_and_an_older_journal_are_told_too() -> None:
    old = [
        Step(0, "lora", 9, 0.3, {}),
        Step(1, "gone", 9, 0.9, {"best": {}, "bounds": {"lora": 0.1}}),
    ]
    found = lanes(("coop", "lora"), old)
    assert [(one.adapter, one.best, one.said(show)) for one in found] == [
        ("lora", 0.3, ""),
        ("coop", None, ""),
    ]


def study_of(run: Path, adapters: tuple[str, ...] = ADAPTERS) -> optuna.Study:
    """A journal with the trials above."""
    facts = {"metric": METRIC, "adapters": list(adapters), "trials": 7, "epochs": 9, "rungs": []}
    (run / "study.json").write_text(json.dumps(facts))
    storage = JournalStorage(JournalFileBackend(str(run / "journal.log")))
    study = optuna.create_study(study_name="cliptune", storage=storage, direction="maximize")
    for step in STEPS:
        name = step.adapter if step.adapter in adapters else adapters[0]
        told: dict[str, Any] = {"config": {"name": name}, "epochs": step.epochs, "race": step.race}
        state = TrialState.PRUNED if step.value is not None else TrialState.FAIL
        study.add_trial(
            create_trial(
                state=state,
                params={"adapter": name, f"{name}/optim.lr": 0.1},
                distributions={
                    "adapter": CategoricalDistribution(adapters),
                    f"{name}/optim.lr": FloatDistribution(0, 1),
                },
                user_attrs=told | ({"best": step.value} if step.value is not None else {}),
                intermediate_values=dict.fromkeys(range(1, step.epochs + 1), 0.1),
            )
        )
    return study


def test_a_search_that_ends_has_a_line_for_each_adapter(tmp_path: Path) -> None:
    search = Search(ADAPTERS, METRIC, 7, 9, 0, {})
    lines = list(closing(study_of(tmp_path), search))
    assert lines[:4] == [
        "0 trials complete, 6 stopped early, 1 failed, 0 unfinished.",
        "lora: 4 trials, 22 epochs, best 0.4000 (trial 5).",
        "projection: 2 trials, 10 epochs, best 0.2000 (trial 1); dropped again from trial 6 "
        "on, 32 epochs into the search: 0.2000 with 9 of its own, where lora had 0.4000.",
        "zero_shot: 1 trial, 1 epoch, best 0.1000 (trial 2); no configuration left to try from "
        "trial 6 on.",
    ]


def page(run: Path) -> tuple[str, str]:
    report.run(report.Args(run))
    return (run / "report.html").read_text(), (run / "report.md").read_text()


def test_the_report_shows_the_race(tmp_path: Path) -> None:
    study_of(tmp_path)
    html, markdown = page(tmp_path)
    assert 'aria-label="the best text-to-image R@1 on val of each adapter' in html
    for text in (html, markdown):
        assert "20.0 % with 9 of its own, where lora had 40.0 %" in text
        assert "no configuration left to try from trial 6 on" in text
    assert '<td class="settings">leads</td>' in html


def test_one_adapter_alone_races_nobody(tmp_path: Path) -> None:
    study_of(tmp_path, ("lora",))
    html, markdown = page(tmp_path)
    assert "The race between adapters" not in html
    assert "| the race |" not in markdown


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a|b"])
def test_the_names_in_a_race_are_text(name: str, tmp_path: Path) -> None:
    study_of(tmp_path, ("lora", name))
    path = tmp_path / "journal.log"
    path.write_text(path.read_text().replace('"projection": 0.2', f"{json.dumps(name)}: 0.9"))
    html, markdown = page(tmp_path)
    assert "<script" not in html
    assert "<script" not in markdown
    assert "a|b |" not in markdown


def test_a_trial_over_a_limit_is_on_no_front_and_never_the_best(tmp_path: Path) -> None:
    study_of(tmp_path)
    study = read_study(tmp_path)
    goals = [(0.9, 0.9), (0.3, 0.5), (0.2, 0.6)]
    trials = [
        dataclasses.replace(
            study.trials[place], state="complete", value=value, retained=kept, over=not place
        )
        for place, (value, kept) in enumerate(goals)
    ]
    found = dataclasses.replace(study, trials=trials)
    assert [one.number for one in found.front] == [1, 2]
    best = found.best()
    assert best is not None
    assert not best.over
    assert max(one.best or 0 for one in lanes_of(found)) == 0.3


def test_what_a_search_notes_of_a_limit_is_what_the_report_looks_for() -> None:
    assert noted_by_search == OVER
