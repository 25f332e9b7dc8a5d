"""The median rule: Ray's verdicts, without looking at all trials for each."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from pipelines.tune.schedulers.asha import Named, make_rule
from pipelines.tune.study.search import Search, Stopping

METRIC = "val/t2i_r1"


def rule(grace: int) -> TrialScheduler:
    stopping = Stopping("median", grace=grace)
    return make_rule(Search(("lora",), METRIC, 9, 9, 0, {}, stopping=stopping), 0)


def verdicts(one: TrialScheduler, seed: int, trials: int = 40) -> list[str]:
    """Of trials that run four at a time for nine epochs; one that was stopped may go on."""
    drawn, found = random.Random(seed), []
    waiting: list[Any] = [Named(str(number)) for number in range(trials)]
    running = [[trial, 0] for trial in waiting[:4]]
    del waiting[:4]
    while running:
        place = drawn.randrange(len(running))
        trial, epoch = running[place][0], running[place][1] + 1
        value = drawn.choice([drawn.random(), drawn.randrange(5) / 5])  # ties
        value = math.nan if drawn.random() < 0.01 else value
        one.on_trial_add(None, trial)
        found.append(one.on_trial_result(None, trial, {"epoch": epoch, METRIC: value}))
        running[place][1] = epoch
        if epoch == 9 or (found[-1] != one.CONTINUE and drawn.random() < 0.7):
            running.pop(place)
            running += [[waiting.pop(0), 0]] if waiting else []
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_verdicts_are_those_of_ray(seed: int) -> None:
    grace = 1 + seed % 3
    theirs = MedianStoppingRule(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        grace_period=grace,
        min_samples_required=3,
        min_time_slice=math.inf,
        hard_stop=False,
    )
    ours = verdicts(rule(grace), seed)
    expected = [one.replace("PAUSE", "STOP") for one in verdicts(theirs, seed)]
    assert ours == expected
    assert {*ours} == {"CONTINUE", "STOP"}


def test_a_verdict_does_not_average_all_trials_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    averaged, mean = [], np.mean

    def counted(values: Any) -> Any:
        averaged.append(len(values))
        return mean(values)

    monkeypatch.setattr(np, "mean", counted)
    results = len(verdicts(rule(1), 0))
    assert len(averaged) <= results
    assert max(averaged) <= 9
