"""The study: what Ray's calls leave in the journal, and what a restarted driver makes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from pipelines.tune import __main__ as tune
from pipelines.tune import flags as tune_flags
from pipelines.tune.callbacks import Losses, Progress, reason_of
from pipelines.tune.samplers.race import LEAST
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.schedulers.asha import EarlyStopping, rungs
from pipelines.tune.study.best import best_so_far, best_trial, over_all
from pipelines.tune.study.budget import Budget
from pipelines.tune.study.kinds import Sampler
from pipelines.tune.study.search import Search, Stopping, doubt_of, usual_grace
from pipelines.tune.study.study import open_study, states
from pipelines.tune.workers.groups import STARTS, Switchboard
from search_spaces.registry import SPACES
from trainables.adapters.registry import adapters_for, make_config
from trainables.config import to_json
from trainables.errors import CliptuneError
from trainables.trials.jobs import Job, pruned_file
from trainables.trials.stacked import shape_of
from trainables.trials.width import Widths

METRIC = "val/t2i_r1"
SEARCH = Search(("soft_prompt", "lora"), METRIC, trials=6, epochs=9, seed=3, fixed={})


def searcher(folder: Path, search: Search = SEARCH) -> StudySearcher:
    study = open_study(folder)
    return StudySearcher(study, search, folder)


def stopping(asks: StudySearcher) -> EarlyStopping:
    return EarlyStopping(asks.study, asks.search, asks.budget)


def row(number: int, epoch: int, value: float, state: str = "running") -> dict[str, Any]:
    return {
        "number": number,
        **{"epoch": epoch, METRIC: value, "best": value, "best_epoch": epoch, "state": state},
        **{"seconds": 1.0, "trainable_parameters": 8},
    }


def test_the_published_recipes_come_first(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number, name in enumerate(SEARCH.adapters):
        config = search.suggest(f"ray{number}")
        assert config["number"] == number
        values = dict(config["values"])
        made = to_json(make_config(values.pop("name"), values))
        recipe = to_json(make_config(name)) | {"epochs": 9, "seed": 3}
        assert made == recipe


def test_a_suggested_trial_is_a_valid_config_of_its_adapter(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number in range(SEARCH.trials):
        values = dict(search.suggest(f"ray{number}")["values"])
        name = values.pop("name")
        make_config(name, values)
        assert set(SPACES[name]["retrieval"]) <= set(values)
    assert search.suggest("more") is None  # a running trial may come back


def test_the_adapter_itself_is_a_choice_that_is_learned(tmp_path: Path) -> None:
    """A conditional space: each trial draws the fields of its own adapter, and where one adapter is
    better, more trials go to it than chance would send."""
    adapters = tuple(adapters_for("classification"))
    search = Search(adapters, "val/accuracy", 60, 9, 3, {}, task="classification")
    asks = searcher(tmp_path, search)
    drawn = []
    for number in range(search.trials):
        values = asks.suggest(f"ray{number}")["values"]
        name = values["name"]
        make_config(name, {k: v for k, v in values.items() if k != "name"})
        own = set(SPACES[name]["classification"])
        assert values.keys() == {"name", "task", "epochs", "seed"} | own
        drawn.append(name)
        value = 0.9 if name == "coop" else 0.1
        result = row(number, 1, value, "finished") | {"val/accuracy": value}
        asks.on_trial_complete(f"ray{number}", result)
    assert drawn[: len(adapters)] == list(adapters)  # every recipe first
    assert drawn[-30:].count("coop") > 3 * 30 / len(adapters)


@pytest.mark.parametrize("kind", ["cmaes", "gp", "qmc", "random", "tpe"])
def test_no_sampler_warns_of_what_a_user_cannot_change(kind: Sampler, tmp_path: Path) -> None:
    alone = dataclasses.replace(SEARCH, adapters=("lora",), sampler=kind, trials=9)
    search = searcher(tmp_path, alone)
    for number in range(9):  # a warning is an error here
        search.suggest(f"ray{number}")
        search.on_trial_complete(f"ray{number}", row(number, 9, number / 9, "finished"))
    origins = [trial.user_attrs["origin"] for trial in search.study.get_trials(deepcopy=False)]
    assert origins[-1] == kind


def test_of_equal_accuracies_the_likelier_trial_wins(tmp_path: Path) -> None:
    search = Search(("coop",), "val/accuracy", 3, 9, 3, {}, task="classification")
    asks = searcher(tmp_path, search)
    for number, likelihood in enumerate((-2.0, -1.0, -1.5)):
        asks.suggest(f"ray{number}")
        result = row(number, 1, 0.5, "finished") | {"best_likelihood": likelihood}
        asks.on_trial_complete(f"ray{number}", result | {"val/accuracy": 0.5})
    best = best_trial(asks.study)
    assert best is not None
    assert best.number == 1


def test_states_values_and_reasons_are_told_as_they_are(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number in range(5):
        search.suggest(f"ray{number}")
    search.on_trial_result("ray0", row(0, 1, 0.1))
    search.on_trial_result("ray0", row(0, 2, 0.4))
    search.on_trial_complete("ray0", row(0, 3, 0.3, "finished") | {"best": 0.4})
    search.on_trial_complete("ray1", row(1, 1, 0.2))  # ASHA stopped it
    failed = {"done": True, "state": "failed", "reason": "Diverged: the loss became nan at step 3."}
    search.on_trial_complete("ray2", failed | {"number": 2})
    search.on_trial_complete("ray3", error=True)  # the worker died: Ray's callback knows why
    search.fail("ray3", 3, "lost 3 times: the worker died")
    search.on_trial_complete("ray4", row(4, 1, float("nan"), "finished"))
    trials = open_study(tmp_path).trials
    states = [TrialState.COMPLETE, TrialState.PRUNED, *[TrialState.FAIL] * 3]
    assert [t.state for t in trials[:5]] == states
    assert trials[0].value == 0.4
    assert trials[0].intermediate_values == {1: 0.1, 2: 0.4, 3: 0.3}
    assert trials[1].intermediate_values == {1: 0.2}
    assert "nan at step 3" in trials[2].user_attrs["reason"]
    assert "worker died" in trials[3].user_attrs["reason"]
    assert "is no number" in trials[4].user_attrs["reason"]
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["trial"], best["value"], best["path"]) == (0, 0.4, "trials/0000")
    assert best["per_adapter"]["lora"]["trial"] == 1


def test_a_restarted_driver_goes_on_with_the_running_and_repeats_nothing(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    given = [first.suggest(f"ray{n}") for n in range(4)]
    first.on_trial_complete("ray0", row(0, 9, 0.5, "finished"))
    first.on_trial_complete("ray2", {"number": 2, "done": True, "state": "interrupted"})
    second = searcher(tmp_path)  # the driver was killed: 1, 2 and 3 were running
    again = [second.suggest(f"new{n}") for n in range(5)]
    assert [x["number"] for x in again] == [1, 2, 3, 4, 5]
    assert again[:3] == given[1:4]
    assert second.suggest("more") is None
    for n, config in enumerate(again):
        second.on_trial_complete(
            f"new{n}", row(config["number"], 9, 0.1 * config["number"], "finished")
        )
    assert states(second.study)["COMPLETE"] == 6
    assert len({t.number for t in second.study.trials}) == 6
    third = searcher(tmp_path)
    assert third.suggest("x") == Searcher.FINISHED


def test_a_driver_killed_between_two_drawn_values_loses_no_trial(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    trial = first.study.ask()  # a recipe is taken from the queue, nothing else is written
    second = searcher(tmp_path)
    config = second.suggest("ray0")
    assert config["number"] == trial.number == 0
    values = dict(config["values"])
    assert values["name"] == "soft_prompt"
    make_config(str(values.pop("name")), values)


def test_suggestions_do_not_depend_on_restarts(tmp_path: Path) -> None:
    def values(folder: Path, restart: bool) -> list[Any]:
        folder.mkdir()
        search, found = searcher(folder), []
        for number in range(6):
            if restart:
                search = searcher(folder)
            config = search.suggest(f"ray{number}")
            search.on_trial_complete(f"ray{number}", row(number, 9, number / 10, "finished"))
            found.append(config)
        return found

    assert values(tmp_path / "once", False) == values(tmp_path / "often", True)


def test_a_driver_killed_before_the_first_value_draws_the_same_when_resumed(
    tmp_path: Path,
) -> None:
    only = Search(("lora",), METRIC, trials=4, epochs=9, seed=3, fixed={})

    def second_trial(folder: Path, killed: bool) -> Any:
        folder.mkdir()
        search = searcher(folder, only)
        search.suggest("ray0")
        search.on_trial_complete("ray0", row(0, 9, 0.5, "finished"))
        if killed:
            search._ask()
            search = searcher(folder, only)
        return search.suggest("ray1")

    assert second_trial(tmp_path / "a", False) == second_trial(tmp_path / "b", True)


def test_half_a_journal_line_and_a_stale_lock_are_removed(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    first.suggest("ray0")
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "wor')
    (tmp_path / "journal.log.lock").symlink_to(journal)
    second = searcher(tmp_path)
    assert second.suggest("ray0")["number"] == 0
    assert journal.read_bytes().startswith(whole)
    assert b'"wor{' not in journal.read_bytes()


ALONE = dataclasses.replace(SEARCH, adapters=("projection",), trials=9)


def test_asha_remembers_what_ended_trials_reached(tmp_path: Path) -> None:
    search = searcher(tmp_path, ALONE)
    for number in range(4):
        search.suggest(f"ray{number}")
        search.on_trial_complete(f"ray{number}", row(number, 1, 0.5 + number / 10))
    search.suggest("ray4")
    search.on_trial_result("ray4", row(4, 1, 0.9))
    search.fail("ray4", 4, "lost 3 times")
    search.suggest("ray5")
    # Of 0.5, 0.6, 0.7, 0.8 and 0.9, two thirds lie under 0.767.
    assert goes_on(stopping(search), 5, 1, 0.77)
    assert not goes_on(stopping(search), 5, 1, 0.76)


def test_each_adapter_has_rungs_of_its_own(tmp_path: Path) -> None:
    search = searcher(tmp_path, dataclasses.replace(SEARCH, trials=12))
    scheduler = stopping(search)
    names = [search.suggest(f"ray{number}")["values"]["name"] for number in range(10)]
    own = {name: [n for n, one in enumerate(names) if one == name] for name in SEARCH.adapters}
    for number in own["lora"]:
        goes_on(scheduler, number, 1, 0.9)
    slow = own["soft_prompt"]
    assert all(goes_on(scheduler, number, 1, 0.1 + number / 100) for number in slow)


def test_the_first_trials_of_an_adapter_are_never_stopped(tmp_path: Path) -> None:
    search = searcher(tmp_path, ALONE)
    scheduler = stopping(search)
    for number in range(LEAST + 1):
        search.suggest(f"ray{number}")
        lives = goes_on(scheduler, number, 1, 0.9 - number / 10)
        assert lives == (number < LEAST)


def goes_on(scheduler: Any, number: int, epoch: int, value: float) -> bool:
    """Whether ASHA lets a trial go on."""
    return bool(scheduler.on_trial_result(None, None, row(number, epoch, value)) == "CONTINUE")


def test_a_restarted_trial_stands_once_in_each_rung_with_what_it_reached_there(
    tmp_path: Path,
) -> None:
    search = searcher(tmp_path, ALONE)
    scheduler = stopping(search)

    def given(trial_id: str) -> Any:
        trial = SimpleNamespace(trial_id=trial_id, config=search.suggest(trial_id))
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        return trial

    first = given("a")
    for epoch, value in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)):
        result = row(0, epoch, value)
        scheduler.on_trial_result(None, first, result)
        search.on_trial_result("a", result | {"pruned": False})
    scheduler.on_trial_error(None, first)
    assert search.lost("a") == [0]
    search.hand_out_again("a", 0)
    again = given("b")
    assert again.config["reported"] == 4
    scheduler.on_trial_result(None, again, row(0, 5, 0.5))
    scheduler.on_trial_result(None, again, row(0, 6, 0.6))
    for number in range(1, LEAST + 2):
        given(f"c{number}")
    for epoch, value in ((1, 0.1), (3, 0.3)):  # alone in each rung, it is all there is to beat
        assert goes_on(scheduler, LEAST, epoch, value)
        assert not goes_on(scheduler, LEAST + 1, epoch, value - 0.01)


def test_rungs() -> None:
    def at(epochs: int, **rules: Any) -> list[int]:
        return rungs(dataclasses.replace(SEARCH, epochs=epochs, stopping=Stopping(**rules)))

    assert at(9) == [1, 3, 9]
    assert at(10) == [1, 3, 9, 10]
    assert at(1) == [1]
    assert at(20, eta=2, grace=3) == [3, 6, 12, 20]
    assert at(9, kind="none") == []


def test_the_first_rung_of_classes_is_later_where_there_are_epochs_for_it() -> None:
    assert [usual_grace("classification", epochs) for epochs in (1, 3, 9)] == [1, 3, 3]
    assert usual_grace("retrieval", 9) == 1


def test_a_sampler_hears_of_equal_accuracies_the_likelier_one() -> None:
    def ended(**attrs: Any) -> FrozenTrial:
        return create_trial(state=TrialState.PRUNED, user_attrs={"best": 0.5, **attrs})

    search = dataclasses.replace(SEARCH, doubt=doubt_of("val/accuracy", 25))
    likely, unlikely = ended(calibrated=-1.0), ended(calibrated=-2.0)
    assert search.heard(likely) == pytest.approx([0.5 - 0.2])
    assert search.heard(unlikely) == pytest.approx([0.5 - 0.4])
    assert search.heard(ended(calibrated=float("nan"))) < search.heard(unlikely)
    assert (
        search.standing(likely) == search.standing(unlikely) == [0.5]
    )  # the race is by the metric
    assert doubt_of("val/t2i_r1", 25) == 0


def test_best_counts_pruned_trials_and_prefers_the_earlier_of_equals(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    assert best_trial(search.study) is None
    for number, value in enumerate((0.2, 0.7, 0.7)):
        search.suggest(f"ray{number}")
        search.on_trial_complete(f"ray{number}", row(number, 1, value))
    top = best_trial(search.study)
    assert top is not None
    assert top.number == 1


def test_the_best_so_far_counts_trials_that_still_run(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    assert best_so_far(search.study, METRIC) == "no trial has been measured yet."
    for number, value in enumerate((0.2, 0.3)):
        search.suggest(f"ray{number}")
        search.on_trial_result(f"ray{number}", row(number, 1, value))
    expected = "best so far: trial 1, lora, val/t2i_r1 0.3000"
    assert best_so_far(search.study, METRIC) == expected


LIMITED = dataclasses.replace(SEARCH, trials=30, limits={"trainable_parameters": 10})


def test_an_adapter_that_was_cut_is_out_whatever_it_reaches_later(tmp_path: Path) -> None:
    """Also for a driver that has more to spend, and would not have cut it yet."""
    asks = searcher(tmp_path, dataclasses.replace(SEARCH, trials=12, sampler="random"))
    late: tuple[str, int] | None = None  # a trial of lora's that still runs when it is cut
    for place in range(10):
        job = asks.suggest(f"ray{place}")
        value = 0.5 if job["values"]["name"] == "soft_prompt" else 0.1
        if value < 0.5 and job["number"] > 3 and late is None:
            late = f"ray{place}", job["number"]
        else:
            result = row(job["number"], 9, value, "finished")
            asks.on_trial_complete(f"ray{place}", result)
    assert late is not None
    cuts = asks.study.trials[9].user_attrs["race"]["cuts"]
    assert set(cuts) == {"lora"}
    asks.on_trial_complete(late[0], row(late[1], 9, 0.9, "finished"))
    more = searcher(tmp_path, dataclasses.replace(SEARCH, trials=100, sampler="random"))
    assert more.suggest("ray10")["values"]["name"] == "soft_prompt"
    assert more.study.trials[10].user_attrs["race"]["cuts"] == cuts


def over(number: int, value: float) -> dict[str, Any]:
    """What a trial reports that has too many parameters, at its first epoch."""
    return row(number, 1, value) | {"trainable_parameters": 11}


def test_an_adapter_that_always_goes_over_a_limit_is_not_asked_for_ever(tmp_path: Path) -> None:
    search = searcher(tmp_path, LIMITED)
    drawn = []
    for number in range(16):
        name = search.suggest(f"ray{number}")["values"]["name"]
        drawn.append(name)
        fits = row(number, 9, 0.5, "finished")
        search.on_trial_complete(f"ray{number}", over(number, 0.9) if name == "lora" else fits)
    assert drawn.count("lora") <= 8


def test_a_trial_over_a_limit_is_never_the_best(tmp_path: Path) -> None:
    search = searcher(tmp_path, LIMITED)
    for number, value in enumerate((0.9, 0.1, 0.2)):
        search.suggest(f"ray{number}")
        result = over(number, value) if number == 0 else row(number, 1, value, "finished")
        search.on_trial_complete(f"ray{number}", result)
    assert best_so_far(search.study, METRIC).startswith("best so far: trial 2,")
    assert search.budget.spent.since == 0  # the last was better than those before it


def test_where_all_went_over_a_limit_the_nearest_is_named(tmp_path: Path) -> None:
    search = searcher(tmp_path, LIMITED)
    for number, parameters in enumerate((30, 12, 20)):
        search.suggest(f"ray{number}")
        result = over(number, 0.5) | {"trainable_parameters": parameters}
        search.on_trial_complete(f"ray{number}", result)
    said = over_all(search.study, LIMITED, tmp_path)
    assert said == (
        f"no trial of `{tmp_path}` kept within `--limit parameters=10`; the nearest, trial 1 of "
        "lora, had parameters=12"
    )
    search.suggest("more")
    search.on_trial_complete("more", row(3, 9, 0.1, "finished"))
    assert not over_all(search.study, LIMITED, tmp_path)


def test_minutes_are_spent_also_where_no_trial_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("pipelines.tune.study.budget.time", clock)
    timed = dataclasses.replace(SEARCH, minutes=2.0)
    asks = searcher(tmp_path, timed)
    asks.suggest("ray0")
    progress = Progress(asks.study, timed, asks.budget)
    for second in range(0, 66, 5):
        clock.monotonic = lambda second=second: float(second)
        progress.on_step_end(0, [])
    resumed = Budget(timed, open_study(tmp_path))
    assert resumed.before == 60  # by the last tick; the driver was killed here


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_budget_of_epochs_is_spent_and_not_overspent_and_recipes_finish(
    at_once: int, tmp_path: Path
) -> None:
    search = searcher(tmp_path, dataclasses.replace(SEARCH, trials=0, epochs_total=40))
    scheduler = stopping(search)
    live: dict[int, int] = {}  # number to epochs
    while True:
        while len(live) < at_once and isinstance(job := search.suggest(f"ray{len(live)}"), dict):
            live[job["number"]] = 0
            pruned_file(tmp_path, job["number"]).parent.mkdir(parents=True)
            search.live[str(job["number"])] = search.live.pop(f"ray{len(live) - 1}")
        if not live:
            break
        number = min(live, key=lambda one: (live[one], one))
        live[number] += 1
        state = "finished" if live[number] == 9 else "running"
        result = row(number, live[number], 0.5 + live[number] / 100, state)
        told = scheduler.on_trial_result(None, None, result)  # type: ignore[arg-type]
        search.on_trial_result(str(number), result)
        if told == "STOP":
            search.on_trial_complete(str(number), result)
            del live[number]
    assert search.budget.spent.epochs == 40
    assert [trial.state for trial in search.study.trials[:2]] == [TrialState.COMPLETE] * 2


def test_a_search_of_a_single_configuration_ends_after_it(tmp_path: Path) -> None:
    fixed = {"adapter.template": "{}"}
    search = searcher(tmp_path, dataclasses.replace(SEARCH, adapters=("zero_shot",), fixed=fixed))
    search.suggest("ray0")
    assert goes_on(stopping(search), 0, 1, 0.5)
    search.on_trial_complete("ray0", row(0, 1, 0.5, "finished"))
    assert search.suggest("ray1") == Searcher.FINISHED
    assert search.budget.tried.out == ["zero_shot"]


def test_the_switchboard_gives_back_the_job_of_a_dead_group() -> None:
    async def story() -> None:
        board = Switchboard(groups=1)
        job = Job(4, {"name": "lora"}, 0)
        await board.open("job", job)
        assert await board.take(0) == ("job", job)
        waiting = asyncio.ensure_future(board.advance("job"))
        assert await board.next_call("job") == "advance"
        await board.put_result("job", {"epoch": 1})
        assert await waiting == {"epoch": 1}
        waiting = asyncio.ensure_future(board.advance("job"))
        await asyncio.sleep(0)
        again = asyncio.ensure_future(board.take(0))  # the group was restarted
        assert "died" in (await waiting)["lost"]
        await board.open("other", Job(5, {}, 0))
        found = await again
        assert found is not None
        assert found[0] == "other"
        await board.release(0)
        await board.close("other")
        await board.stop()
        assert await board.take(0) is None

    asyncio.run(story())


def test_where_no_group_comes_up_every_trial_is_told_why() -> None:
    async def story() -> None:
        board = Switchboard(groups=2)
        await board.open("early", Job(4, {}, 0))
        waiting = asyncio.ensure_future(board.advance("early"))
        for start in range(1, STARTS + 1):
            assert await board.died(0, "no card 0") == (start < STARTS)
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.give_up(1, "no card 1")
        assert not await board.died(1, "what it said before it died")
        expected = {"number": 4, "state": "interrupted", "done": True}
        reason = "no group of workers comes up: no card 0; no card 1"
        assert await waiting == expected | {"reason": reason}
        await board.open("late", Job(5, {}, 0))
        assert (await board.advance("late"))["reason"] == reason
        assert await board.stop() == {0: "no card 0", 1: "no card 1"}

    asyncio.run(story())


def test_a_group_that_takes_jobs_is_started_anew_as_often_as_it_dies() -> None:
    async def story() -> None:
        board = Switchboard(groups=1)
        await board.open("job", Job(4, {}, 0))
        for _ in range(2 * STARTS):
            await board.open("job", Job(4, {}, 0))
            assert await board.take(0) is not None
            waiting = asyncio.ensure_future(board.advance("job"))
            assert await board.died(0, "signal 9")
            assert "signal 9" in (await waiting)["lost"]

    asyncio.run(story())


def test_a_group_that_came_up_may_fail_to_once() -> None:
    async def story() -> None:
        board = Switchboard(groups=1)
        await board.open("job", Job(4, {}, 0))
        assert await board.take(0) is not None
        assert await board.died(0, "its node was taken")  # no failed start
        for start in range(1, STARTS + 1):
            assert await board.died(0, "no place") == (start < STARTS)

    asyncio.run(story())


def test_a_group_that_died_idle_and_stays_away_takes_no_job() -> None:
    async def story() -> None:
        board = Switchboard(groups=2)
        dead = asyncio.ensure_future(board.take(0))
        await asyncio.sleep(0)
        await board.died(0, "its node was taken")
        await board.give_up(0, "no place")
        await board.open("job", Job(4, {}, 0))
        assert await dead is None
        assert await asyncio.wait_for(board.take(1), 5) == ("job", Job(4, {}, 0))

    asyncio.run(story())


def test_a_search_that_no_group_trains_stops_and_keeps_its_trials(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("ray0")
    told = {"number": 0, "done": True, "state": "interrupted", "reason": "no card"}
    search.on_trial_complete("ray0", told)
    assert search.paused == "no card"
    assert search.suggest("ray1") == Searcher.FINISHED
    assert search.study.trials[0].state == TrialState.RUNNING  # a resumed search goes on with it


def test_a_group_that_died_idle_takes_no_job_from_its_successor() -> None:
    async def story() -> None:
        board = Switchboard(groups=1)
        dead = asyncio.ensure_future(board.take(0))
        await asyncio.sleep(0)
        alive = asyncio.ensure_future(board.take(0))
        await asyncio.sleep(0)
        await board.open("job", Job(4, {}, 0))
        assert await asyncio.wait_for(alive, 5) == ("job", Job(4, {}, 0))
        assert await dead is None

    asyncio.run(story())


def test_a_trial_handed_out_again_frees_the_group_that_waits_for_its_dead_caller() -> None:
    async def story() -> None:
        board = Switchboard(groups=1)
        await board.open("first", Job(4, {}, 0))
        assert await board.take(0) is not None
        await board.open("second", Job(4, {}, 1))
        assert await asyncio.wait_for(board.next_call("first"), 5) == "close"
        assert await board.take(0) == ("second", Job(4, {}, 1))

    asyncio.run(story())


def test_unknown_metric_of_a_failed_trial_never_becomes_best(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("ray0")
    search.on_trial_complete("ray0", {"number": 0, "done": True, "state": "failed", "reason": "x"})
    assert best_trial(search.study) is None
    assert not (tmp_path / "best.json").exists()


@pytest.mark.parametrize("adapter", ["soft_prompt", "lora", "projection"])
def test_one_adapter_alone_needs_no_choice(adapter: str, tmp_path: Path) -> None:
    only = Search((adapter,), METRIC, trials=2, epochs=3, seed=0, fixed={"batch_size": 64})
    search = searcher(tmp_path, only)
    values = [search.suggest(f"ray{n}")["values"] for n in range(2)]
    assert all(v["name"] == adapter and v["batch_size"] == 64 for v in values)
    assert all("adapter" not in t.params for t in search.study.trials)


DEAD_GPU = "torch.AcceleratorError: CUDA error: device-side assert triggered"
ERROR = f"""Failure # 1 (occurred at 2026-11-28_16-46-36)
ray::ResourceTrainable.train() (pid=5445, ip=192.0.2.2, actor_id=41160e64e29bb145b33d19ca01000000)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "trainables/trials/trial.py", line 21, in step
    return self.runner.advance()
{DEAD_GPU}
Search for `cudaErrorAssert' in https://docs.nvidia.com/cuda for more information.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
"""


def test_the_reason_of_a_loss_is_what_tune_wrote_down(tmp_path: Path) -> None:
    def reason(text: str) -> str:
        (tmp_path / "error.txt").write_text(text)
        lost: Any = SimpleNamespace(error_file=str(tmp_path / "error.txt"))
        return reason_of(lost)

    died = (
        "Failure # 2 (occurred at now)\nThe actor died.\n\tpid: 1\nIts worker process has died.\n"
    )
    assert reason(ERROR) == DEAD_GPU
    assert reason(ERROR + died) == "Its worker process has died."
    assert reason(died + ERROR) == DEAD_GPU
    assert reason("") == "the worker died"
    unwritten: Any = SimpleNamespace(error_file=None)
    assert reason_of(unwritten) == "the worker died"


def test_a_trial_that_lost_its_worker_is_handed_out_again_and_then_given_up(tmp_path: Path) -> None:
    search = searcher(tmp_path, Search(("lora",), METRIC, trials=1, epochs=3, seed=0, fixed={}))
    losses = Losses(search)
    error = tmp_path / "error.txt"
    error.write_text(ERROR)
    for attempt in range(3):
        config = search.suggest(f"ray{attempt}")
        assert config["number"] == 0
        assert search.suggest("none is free") is None
        died = SimpleNamespace(trial_id=f"ray{attempt}", config=config, error_file=str(error))
        search.on_trial_complete(died.trial_id, error=True)
        losses.on_trial_error(0, [], died)  # type: ignore[arg-type]
    assert search.suggest("last") == Searcher.FINISHED
    trial = search.study.trials[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == f"lost 3 times: {DEAD_GPU}"


def test_the_journal_opens_in_optuna_dashboard(tmp_path: Path) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna_dashboard import wsgi

    search = searcher(tmp_path)
    search.suggest("ray0")
    search.on_trial_complete("ray0", row(0, 9, 0.5, "finished"))
    app = wsgi(JournalStorage(JournalFileBackend(str(tmp_path / "journal.log"))))
    asked: dict[str, Any] = {"PATH_INFO": "/api/studies/0"}
    setup_testing_defaults(asked)
    status: list[str] = []
    answer = b"".join(app(asked, lambda code, *_: status.append(code)))
    assert status == ["200 OK"]
    first = json.loads(answer)["trials"][0]
    assert (first["state"], first["values"]) == ("Complete", [0.5])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"metric": "val/t2i_r7"}, "unknown metric `val/t2i_r7`"),
        ({"set": ("epochs=50",)}, "use `--epochs`"),
        ({"set": ("batch_sise=64",)}, "Did you mean `batch_size`"),
        ({"adapter": ("lora", "lora")}, "must name each adapter once"),
        ({"minutes": -1.0}, "`--minutes` must be at least 0, got -1.0"),
        ({"minutes": float("nan")}, "`--minutes` must be at least 0, got nan"),
        ({"grace": 10}, "`--grace` must be at most `--epochs` 9, got 10"),
        ({"epochs": 3, "set": ("changes=9: optim.lr=0.1",)}, "`changes` must be in 3 epochs"),
        ({"interval": 2}, "`--interval` must be 1 with `--scheduler asha`, got 2"),
        (
            {"brackets": 2, "scheduler": "pbt"},
            "`--brackets` must be 1 with `--scheduler pbt`, got 2",
        ),
        ({"eta": 2, "scheduler": "none"}, "`--eta` must be 3 with `--scheduler none`, got 2"),
        ({"grace": 2, "scheduler": "pb2"}, "`--grace` must be 0 with `--scheduler pb2`, got 2"),
        (
            {"scheduler": "median", "retain": (Path("new.json"),)},
            "`--scheduler` must be none beside `--retain`, whose two goals .*, got median",
        ),
        (
            {"eta": 2, "retain": (Path("new.json"),)},
            "`--eta` must be 3 beside `--retain`, which stops no trial early, got 2",
        ),
        (
            {"scheduler": "pbt", "adapter": ("lora", "zero_shot")},
            "`--adapter` must leave out `zero_shot` with `--scheduler pbt`: nothing of it can",
        ),
    ],
)
def test_a_wrong_flag_is_refused_before_any_work(flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(CliptuneError, match=expected):
        tune_flags.check(tune.Args(Path("features"), **flags))


QUICK = """
import sys
from pipelines.cli import stage_main
for words in sys.argv[1:]:
    try:
        stage_main("tune", words.split())
    except SystemExit:
        pass
print({"torch", "ray", "transformers"} & {*sys.modules})
"""


def test_a_slip_is_answered_before_torch_and_ray_are_imported(tmp_path: Path) -> None:
    said = {
        "--adapter loar": "unknown adapter `loar`. Did you mean `lora`?",
        "--adapter lora lora": "`--adapter` must name each adapter once",
        "--epochs 0": "`--epochs` must be at least 1, got 0.",
        "--minutes -1": "`--minutes` must be at least 0, got -1.0.",
        "--gpus 1.5": "`--gpus` must be `auto`, a fraction from 0.01 to 1, or whole, got 1.5.",
        "--limit memory=3": "`--limit`: unknown limit `memory`",
        "--folds 3": "`--folds` must be 0 without `--draw`, got 3.",
        "--seed 3": "holds no finished features: run `cliptune encode`.",
    }
    flags = [f"--features {tmp_path} {words}" for words in said]
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *flags], text=True, capture_output=True, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) == len(said)
    assert all(words in line for words, line in zip(said.values(), lines, strict=True))
    assert done.stdout == "set()\n"


def test_fixed_fields_have_their_type() -> None:
    search = tune_flags.check(tune.Args(Path("features"), set=("batch_size=64", "optim.lr=1e-3")))
    assert search.fixed == {"batch_size": 64, "optim.lr": 1e-3}


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_search_whose_trials_all_ended_says_so_and_mends_what_a_kill_left_out(
    succeeded: bool, tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tune.study.mending.restore", lambda *_: [])  # told, not trained
    args = tune.Args(features, tmp_path, adapter=("lora",), metric=METRIC, trials=1, epochs=9)
    search = searcher(tmp_path, tune_flags.check(args))
    search.suggest("ray0")
    failed = {"number": 0, "done": True, "state": "failed", "reason": "x"}
    search.on_trial_complete("ray0", row(0, 9, 0.5, "finished") if succeeded else failed)
    (tmp_path / "best.json").unlink(missing_ok=True)
    if succeeded:
        tune.run(args)
        assert json.loads((tmp_path / "best.json").read_text())["value"] == 0.5
    else:
        with pytest.raises(CliptuneError, match=r"no trial .* succeeded"):
            tune.run(args)


def test_of_trials_that_train_together_each_is_judged_alone(tmp_path: Path) -> None:
    many = Search(("projection",), METRIC, trials=9, epochs=9, seed=3, fixed={})
    study = open_study(tmp_path)
    search = StudySearcher(study, many, tmp_path, fuse=4)
    scheduler = EarlyStopping(study, many, Budget(many, study))
    assert "siblings" in search.suggest("recipe")  # no other recipe waits behind it
    group = SimpleNamespace(trial_id="group", config=search.suggest("group"))
    scheduler.on_trial_add(None, group)  # type: ignore[arg-type]
    jobs = Job(**group.config).all
    numbers = [job.number for job in jobs]
    assert len(numbers) == 4
    shapes = []
    for job in jobs:
        values = dict(job.values)
        shapes.append(shape_of(make_config(values.pop("name"), values)))
        pruned_file(tmp_path, job.number).parent.mkdir(parents=True)
    assert all(shape == shapes[0] for shape in shapes)
    assert len({job.values["optim.lr"] for job in jobs}) == 4
    values_ = (0.9, 0.1, 0.8, 0.2)
    first = {
        "number": numbers[0],
        "members": [row(n, 1, v) for n, v in zip(numbers, values_, strict=True)],
    }
    assert scheduler.on_trial_result(None, group, first) == "CONTINUE"  # type: ignore[arg-type]
    search.on_trial_result("group", first)
    pruned = [n for n in numbers if pruned_file(tmp_path, n).exists()]
    assert pruned == [numbers[1], numbers[3]]
    told = {n: study.get_trials()[n].state for n in numbers}
    assert told == {n: TrialState.PRUNED if n in pruned else TrialState.RUNNING for n in numbers}
    ended = [row(n, 9, 0.9, "finished") for n in (numbers[0], numbers[2])]
    last = {"number": numbers[0], "members": ended, "done": True}
    scheduler.on_trial_complete(None, group, last)  # type: ignore[arg-type]
    search.on_trial_complete("group", last)
    assert study.get_trials()[numbers[0]].state == TrialState.COMPLETE
    assert not search.live.get("group")


def test_trials_lost_together_come_back_alone(tmp_path: Path) -> None:
    many = Search(("projection",), METRIC, trials=9, epochs=9, seed=3, fixed={})
    study = open_study(tmp_path)
    search = StudySearcher(study, many, tmp_path, fuse=4)
    search.suggest("recipe")
    lost = [job.number for job in Job(**search.suggest("group")).all]
    assert search.lost("group") == lost
    for number in lost:
        search.hand_out_again("group", number)
    again = [search.suggest(f"again{n}") for n in range(4)]
    assert [config["number"] for config in again] == lost
    assert not any("siblings" in config for config in again)


def test_groups_are_an_eighth_of_the_search_and_as_wide_as_measured(tmp_path: Path) -> None:
    many = Search(("projection",), METRIC, trials=24, epochs=9, seed=3, fixed={})
    study = open_study(tmp_path)
    search = StudySearcher(study, many, tmp_path, fuse=0)

    def width(name: str) -> int:
        return len(Job(**search.suggest(name)).all)

    assert width("unmeasured") == 1
    Widths(tmp_path).note("projection", 2, "")
    assert width("measured") == 2
    Widths(tmp_path).note("projection", 16, "")
    assert width("capped") == 3
    search.fuse = 1
    assert width("off") == 1
