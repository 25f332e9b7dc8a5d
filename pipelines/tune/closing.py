"""The last lines of a search: how its trials ended, how its adapters raced, the best.

Flows in: the study. Flows out: lines.
"""

from __future__ import annotations

from collections.abc import Iterator

import optuna
from optuna.trial import FrozenTrial

from pipelines.pages.numbers import plural
from pipelines.tune.study.best import best_so_far
from pipelines.tune.study.budget import Budget, epochs_of
from pipelines.tune.study.lanes import Lane, Step, lanes
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import OVER, RACE, adapter_of, states


def closing(study: optuna.Study, search: Search) -> Iterator[str]:
    """The lines."""
    counts, population = states(study), search.stopping.population
    early = "" if population else f"{counts['PRUNED']} stopped early, "
    ended = f"{counts['COMPLETE']} trials complete, {early}{counts['FAIL']} failed"
    yield f"{ended}, {counts['RUNNING']} unfinished."
    if population:
        trials = study.get_trials(deepcopy=False)
        taken = sum(len(trial.user_attrs.get("exploits", ())) for trial in trials)
        yield f"weights of better trials were taken over {plural(taken, 'time')}."
    if len(search.adapters) > 1:
        steps = [_step(trial, search) for trial in study.get_trials(deepcopy=False)]
        yield from map(_line, lanes(search.adapters, steps))
    yield from Budget(search, study).tried.said()
    yield best_so_far(study, search.metric)


def _step(trial: FrozenTrial, search: Search) -> Step:
    # One that went over a limit is never the best.
    value = None if OVER in trial.user_attrs else next(iter(search.standing(trial)), None)
    race = trial.user_attrs.get(RACE) or {}
    return Step(trial.number, adapter_of(trial) or "", epochs_of(trial), value, race)


def _line(lane: Lane) -> str:
    best = "no result" if lane.best is None else f"best {lane.best:.4f} (trial {lane.best_trial})"
    said = lane.said("{:.4f}".format)
    spent = f"{plural(lane.trials, 'trial')}, {plural(lane.spent, 'epoch')}"
    return f"{lane.adapter}: {spent}, {best}" + (said and f"; {said}") + "."
