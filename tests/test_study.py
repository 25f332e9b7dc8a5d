"""The study: what Ray's calls leave in the journal, and what a restarted driver makes of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pipelines.search.study import (
    Losses,
    Search,
    StudySearcher,
    best_trial,
    enqueue_recipes,
    open_study,
    replayed_asha,
    rungs,
    states,
)
from pipelines.search.workers import Switchboard
from search_spaces.registry import SPACES
from trainables.adapters.registry import make_config
from trainables.config import to_json

METRIC = "val/t2i_r1"
SEARCH = Search(("soft_prompt", "lora"), METRIC, trials=6, epochs=9, seed=3, fixed={})


def searcher(folder: Path, search: Search = SEARCH) -> StudySearcher:
    study = open_study(folder)
    enqueue_recipes(study, search)
    return StudySearcher(study, search, folder)


def row(epoch: int, value: float, state: str = "running") -> dict[str, Any]:
    return {
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
        assert set(SPACES[name]) <= set(values)
    assert search.suggest("more") is None  # a running trial may come back


def test_states_values_and_reasons_are_told_as_they_are(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number in range(4):
        search.suggest(f"ray{number}")
    search.on_trial_result("ray0", row(1, 0.1))
    search.on_trial_result("ray0", row(2, 0.4))
    search.on_trial_complete("ray0", row(3, 0.3, "finished") | {"best": 0.4})
    search.on_trial_complete("ray1", row(1, 0.2))  # ASHA stopped it
    failed = {"done": True, "state": "failed", "reason": "Diverged: the loss became nan at step 3."}
    search.on_trial_complete("ray2", failed)
    search.on_trial_complete("ray3", error=True)  # the worker died: Ray's callback knows why
    search.fail("ray3", "lost 3 times: the worker died")
    trials = open_study(tmp_path).trials
    assert [t.state for t in trials[:4]] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert trials[0].value == 0.4
    assert trials[0].intermediate_values == {1: 0.1, 2: 0.4, 3: 0.3}
    assert trials[1].intermediate_values == {1: 0.2}
    assert "nan at step 3" in trials[2].user_attrs["reason"]
    assert "worker died" in trials[3].user_attrs["reason"]
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["trial"], best["value"], best["path"]) == (0, 0.4, "trials/0000")
    assert best["per_adapter"]["lora"]["trial"] == 1


def test_a_restarted_driver_goes_on_with_the_running_and_repeats_nothing(tmp_path: Path) -> None:
    first = searcher(tmp_path)
    given = [first.suggest(f"ray{n}") for n in range(4)]
    first.on_trial_complete("ray0", row(9, 0.5, "finished"))
    first.on_trial_complete("ray2", {"done": True, "state": "interrupted"})
    second = searcher(tmp_path)  # the driver was killed: 1, 2 and 3 were running
    again = [second.suggest(f"new{n}") for n in range(5)]
    assert [x["number"] for x in again] == [1, 2, 3, 4, 5]
    assert again[:3] == given[1:4]
    assert second.suggest("more") is None
    for n, config in enumerate(again):
        second.on_trial_complete(f"new{n}", row(9, 0.1 * config["number"], "finished"))
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
            search.on_trial_complete(f"ray{number}", row(9, number / 10, "finished"))
            found.append(config)
        return found

    assert values(tmp_path / "once", False) == values(tmp_path / "often", True)


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


def test_asha_remembers_what_ended_trials_reached(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number in range(4):
        search.suggest(f"ray{number}")
        search.on_trial_complete(f"ray{number}", row(1, 0.5 + number / 10))
    scheduler = replayed_asha(search.study, SEARCH, 3, 1)
    rung = dict(scheduler._brackets[0]._rungs)[1]
    assert sorted(rung.values()) == [0.5, 0.6, 0.7, 0.8]


def test_rungs() -> None:
    assert rungs(9, 3, 1) == [1, 3, 9]
    assert rungs(10, 3, 1) == [1, 3, 9, 10]
    assert rungs(1, 3, 1) == [1]


def test_best_counts_pruned_trials_and_prefers_the_earlier_of_equals(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    assert best_trial(search.study) is None
    for number, value in enumerate((0.2, 0.7, 0.7)):
        search.suggest(f"ray{number}")
        search.on_trial_complete(f"ray{number}", row(1, value))
    top = best_trial(search.study)
    assert top is not None
    assert top.number == 1


def test_the_switchboard_gives_back_the_job_of_a_dead_group() -> None:
    async def story() -> None:
        board = Switchboard()
        await board.open("job", 4, {"name": "lora"})
        taken = await board.take(0)
        assert taken == {"job": "job", "number": 4, "values": {"name": "lora"}}
        waiting = asyncio.ensure_future(board.advance("job"))
        assert await board.next_call("job") == "advance"
        await board.put_result("job", {"epoch": 1})
        assert await waiting == {"epoch": 1}
        waiting = asyncio.ensure_future(board.advance("job"))
        await asyncio.sleep(0)
        again = asyncio.ensure_future(board.take(0))  # the group was restarted
        assert "died" in (await waiting)["lost"]
        await board.open("other", 5, {})
        found = await again
        assert found is not None
        assert found["job"] == "other"
        await board.release(0)
        await board.close("other")
        await board.stop()
        assert await board.take(0) is None

    asyncio.run(story())


def test_unknown_metric_of_a_failed_trial_never_becomes_best(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("ray0")
    search.on_trial_complete("ray0", {"done": True, "state": "failed", "reason": "x"})
    assert best_trial(search.study) is None
    assert not (tmp_path / "best.json").exists()


@pytest.mark.parametrize("adapter", ["soft_prompt", "lora", "projection"])
def test_one_adapter_alone_needs_no_choice(adapter: str, tmp_path: Path) -> None:
    only = Search((adapter,), METRIC, trials=2, epochs=3, seed=0, fixed={"batch_size": 64})
    search = searcher(tmp_path, only)
    values = [search.suggest(f"ray{n}")["values"] for n in range(2)]
    assert all(v["name"] == adapter and v["batch_size"] == 64 for v in values)
    assert all("adapter" not in t.params for t in search.study.trials)


def test_a_trial_that_lost_its_worker_is_handed_out_again_and_then_given_up(tmp_path: Path) -> None:
    search = searcher(tmp_path, Search(("lora",), METRIC, trials=1, epochs=3, seed=0, fixed={}))
    losses = Losses(search)
    for attempt in range(3):
        config = search.suggest(f"ray{attempt}")
        assert config["number"] == 0
        assert search.suggest("none is free") is None
        died = SimpleNamespace(
            trial_id=f"ray{attempt}", config=config, get_error=lambda: "x\nthe node was lost\n"
        )
        search.on_trial_complete(died.trial_id, error=True)
        losses.on_trial_error(0, [], died)  # type: ignore[arg-type]
    assert search.suggest("last") == Searcher.FINISHED
    trial = search.study.trials[0]
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "lost 3 times: the node was lost"


def test_the_journal_opens_in_optuna_dashboard(tmp_path: Path) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna_dashboard import wsgi

    search = searcher(tmp_path)
    search.suggest("ray0")
    search.on_trial_complete("ray0", row(9, 0.5, "finished"))
    app = wsgi(JournalStorage(JournalFileBackend(str(tmp_path / "journal.log"))))
    asked: dict[str, Any] = {"PATH_INFO": "/api/studies/0"}
    setup_testing_defaults(asked)
    status: list[str] = []
    answer = b"".join(app(asked, lambda code, *_: status.append(code)))
    assert status == ["200 OK"]
    first = json.loads(answer)["trials"][0]
    assert (first["state"], first["values"]) == ("Complete", [0.5])
