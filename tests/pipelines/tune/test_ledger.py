"""Sums that are kept equal those that are made anew, whatever became of the trials."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipelines.tune.samplers.history import SHOWN, History, Own
from pipelines.tune.samplers.race import Standings
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.study.best import Best
from pipelines.tune.study.budget import Spent, epochs_of
from pipelines.tune.study.search import Search, Start
from pipelines.tune.study.study import DONE, adapter_of, best_value, open_study
from pipelines.tune.study.sums import Ledger

METRIC = "val/t2i_r1"
SEARCH = Search(("projection", "soft_prompt"), METRIC, 200, 3, 3, {}, limits={"seconds": 3.5})


@dataclasses.dataclass
class Reads:
    """How often each trial was read."""

    times: dict[int, int] = dataclasses.field(default_factory=dict)

    def add(self, trial: FrozenTrial) -> None:
        self.times[trial.number] = self.times.get(trial.number, 0) + 1

    def copy(self) -> Reads:
        return Reads(self.times)


def trial(number: int, state: TrialState) -> FrozenTrial:
    made = create_trial(state=state, value=0.5 if state == TrialState.COMPLETE else None)
    made.number = number
    return made


def test_a_trial_that_ended_is_read_once() -> None:
    trials = [trial(number, TrialState.COMPLETE) for number in range(50)]
    ledger = Ledger(Reads())
    for _ in range(3):
        running = trial(len(trials), TrialState.RUNNING)
        ledger.of([*trials, running])
        trials.append(trial(len(trials), TrialState.PRUNED))
    times = ledger.of(trials).times
    assert {times[number] for number in range(50)} == {1}
    assert max(times.values()) <= 2  # while it ran, and when it had ended


class Life:
    """A driver that is killed now and then, whose trials end in every way that there is."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.names = 0
        self.restart()

    def restart(self) -> None:
        self.asks = StudySearcher(open_study(self.folder), SEARCH, self.folder)
        self.running: dict[str, tuple[int, int]] = {}  # Ray's name to number and epoch

    def go_on(self) -> None:
        if len(self.running) < 4:
            self.names += 1
            name = f"ray{self.names}"
            self.running[name] = (self.asks.suggest(name)["number"], 0)
            return
        name = self.random.choice(list(self.running))
        number, epoch = self.running.pop(name)
        if self.random.random() < 0.1:
            self.asks.fail(name, number, "lost 3 times")
            return
        epoch = min(3, max(epoch, self.reported(number)) + 1)
        result = self.result(number, epoch)
        if result["state"] == "running" and not result["done"]:
            self.running[name] = (number, epoch)
            self.asks.on_trial_result(name, result)
        else:
            self.asks.on_trial_complete(name, result)

    def reported(self, number: int) -> int:
        return epochs_of(self.trials[number])

    def result(self, number: int, epoch: int) -> dict[str, Any]:
        value = self.random.randrange(20) / 20  # ties
        state = self.random.choice(["running"] * 3 + ["failed", "interrupted"])
        if epoch == 3:
            state = "finished"
        return {
            **{"number": number, "epoch": epoch, METRIC: value, "best": value, "state": state},
            **{"best_epoch": epoch, "seconds": 4 * self.random.random(), "reason": "x"},
            **{"trainable_parameters": 8, "done": self.random.random() < 0.3},
            "best_likelihood": -self.random.randrange(3),
        }

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.asks.study.get_trials(deepcopy=False)

    def kept(self) -> tuple[Spent, dict[str, Any], dict[str, Own], Any]:
        sampler = self.asks.sampler
        return (
            self.asks.budget.ledger.of(self.trials),
            vars(sampler.race.ledger.of(self.trials)),
            sampler.ledger.of(self.trials).own,
            self.asks.best.of(self.trials).found,
        )


def anew(trials: list[FrozenTrial]) -> tuple[Spent, dict[str, Any], dict[str, Own], Any]:
    """The same from all trials, without a ledger."""
    sums = Spent(), Standings(SEARCH), History(SEARCH, {}), Best()
    for one in trials:
        for each in sums:
            each.add(one)
    return sums[0], vars(sums[1]), sums[2].own, sums[3].found


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_equals_what_is_made_anew(seed: int, tmp_path: Path) -> None:
    life = Life(tmp_path, seed)
    for step in range(150):
        life.go_on()
        if step % 40 == 39 or life.asks.stopping:
            life.restart()
        assert life.kept() == anew(life.trials)
    trials, spent = life.trials, life.asks.budget.spent
    assert {one.state for one in trials} == {*DONE, TrialState.RUNNING}
    ended = [one for one in trials if one.state in DONE]
    values = [best_value(one) for one in ended]
    assert spent.asked == len(trials)
    assert spent.ended == len(ended)
    assert spent.epochs == sum(map(epochs_of, trials))
    assert spent.since == len(values) - 1 - values.index(max(values))
    for name, runner in life.kept()[1]["runners"].items():
        assert runner.asked == sum(adapter_of(one) == name for one in trials)


def test_values_drawn_with_a_ledger_are_those_drawn_without(tmp_path: Path) -> None:
    """A restarted driver has read nothing: what it suggests next is from all trials, anew."""

    def drawn(folder: Path, restarts: bool) -> list[Any]:
        folder.mkdir()
        life, found = Life(folder, 5), []
        for number in range(40):
            if restarts:
                life.restart()
            job = life.asks.suggest(f"ray{number}")
            found.append(job)
            life.asks.on_trial_complete(f"ray{number}", life.result(number, 3))
        return found

    assert drawn(tmp_path / "kept", False) == drawn(tmp_path / "anew", True)


def test_of_many_trials_a_sampler_sees_the_best_and_a_spread_of_the_others() -> None:
    search = dataclasses.replace(SEARCH, adapters=("projection",))
    start: Start = search.starts("projection")[0]
    space = search.searched("projection")
    ledger = Ledger(History(search, {}))
    trials = []
    for number in range(3 * SHOWN):
        one = create_trial(
            params={f"projection/{name}": value for name, value in start.values.items()},
            distributions={f"projection/{name}": each for name, each in space.items()},
            user_attrs={"best": 1.0 if number == 1 else 0.5},
            value=0.5,
        )
        one.number = number
        trials.append(one)
        seen = ledger.of(trials).own["projection"].shown()
        assert len(seen) <= SHOWN
        assert number == 0 or 2 in {each.number for each in seen}  # 1, in the sampler's terms
        assert seen[-1].number == 1 + number
