"""The best trials of a study, kept up to date as trials end.

Flows in: trials. Flows out: the best of all and of each adapter, and the front of two goals; in
words, and as `best.json` while a search runs. At the end of a search, `choice.py` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.tune.study.limits import LIMITS
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import OVER, goals
from pipelines.tune.study.sums import Ledger
from trainables.files import write_hashed
from trainables.metrics.balance import RULE, front, standing


class Best:
    """The trial with the best val value at any epoch, of all and of each adapter; of equal
    accuracies the likelier one, of other ties the earlier.

    PRUNED trials count: their `best/` was measured like any other. With two goals, the harmonic
    mean is compared, both at the epoch that is best by the metric, that of `best/`. Then there is a
    front too: the complete trials that no other beats in both, the best by the metric first.
    """

    def __init__(
        self,
        found: Mapping[str | None, FrozenTrial] | None = None,
        front: Sequence[FrozenTrial] = (),
    ) -> None:
        self.found = dict(found or {})  # by adapter; None: of all
        self.front = list(front)

    def add(self, trial: FrozenTrial) -> None:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or OVER in trial.user_attrs:
            return
        for name in (None, trial.user_attrs["config"]["name"]):
            if name not in self.found or standing_of(trial) > standing_of(self.found[name]):
                self.found[name] = trial
        if trial.state == TrialState.COMPLETE and goals(trial)[1] is not None:
            rivals = [*self.front, trial]
            pairs = [(value, kept or 0.0) for value, kept in map(goals, rivals)]
            self.front = [rivals[place] for place in front(pairs)]

    def copy(self) -> Best:
        return Best(self.found, self.front)


def standing_of(trial: FrozenTrial) -> tuple[float, ...]:
    return (*standing(*goals(trial)), trial.user_attrs.get("likelihood", 0.0))


def best_of(study: optuna.Study, ledger: Ledger[Best] | None = None) -> Best:
    """The best, from `ledger`, or found anew."""
    return (ledger or Ledger(Best())).of(study.get_trials(deepcopy=False))


def best_trial(study: optuna.Study, adapter: str | None = None) -> FrozenTrial | None:
    """The best trial of all or of an adapter."""
    return best_of(study).found.get(adapter)


def over_all(study: optuna.Study, search: Search, folder: Path) -> str:
    """A sentence where all trials with a result went over a limit, and how near one came; else
    empty."""
    over = [one for one in study.get_trials(deepcopy=False) if OVER in one.user_attrs]
    if not over or not search.limits or best_trial(study) is not None:
        return ""

    def excess(trial: FrozenTrial) -> float:
        return max(trial.user_attrs[name] / most for name, most in search.limits.items())

    near = min(over, key=excess)
    flags = {noted: flag for flag, noted in LIMITS.items()}
    limits = " ".join(f"{flags[name]}={most:g}" for name, most in search.limits.items())
    had = " ".join(f"{flags[name]}={near.user_attrs[name]:g}" for name in search.limits)
    name = near.user_attrs["config"]["name"]
    return (
        f"no trial of `{folder}` kept within `--limit {limits}`; the nearest, trial {near.number} "
        f"of {name}, had {had}"
    )


def shown(trial: FrozenTrial, retains: bool) -> str:
    """The value as a line of progress shows it."""
    value, kept = goals(trial)
    if not retains:
        return f"{value:.4f}"
    return f"{value:.4f}, retained {'not applicable' if kept is None else f'{kept:.4f}'}"


def best_so_far(study: optuna.Study, metric: str) -> str:
    """The best value of any trial, running ones included, in words."""
    chosen = best_trial(study) if len(study.directions) > 1 else None
    if chosen is not None:
        name = chosen.user_attrs["config"]["name"]
        return f"best so far: trial {chosen.number}, {name}, {metric} {shown(chosen, True)}"
    measured = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.intermediate_values
        and trial.state != TrialState.FAIL
        and OVER not in trial.user_attrs
    ]
    if not measured:
        return "no trial has been measured yet."
    top = max(measured, key=lambda trial: max(trial.intermediate_values.values()))
    value = max(top.intermediate_values.values())
    name = top.user_attrs["config"]["name"]
    return f"best so far: trial {top.number}, {name}, {metric} {value:.4f}"


def write_best(
    study: optuna.Study, search: Search, folder: Path, ledger: Ledger[Best] | None = None
) -> None:
    """Write `best.json`: the winner on val, and each adapter's own; with two goals, also the
    front."""

    def entry(trial: FrozenTrial) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "adapter": trial.user_attrs["config"]["name"],
            "value": trial.user_attrs["best"],
            **({"retained": goals(trial)[1]} if search.retains else {}),
            "path": f"trials/{trial.number:04d}",
        }

    top = best_of(study, ledger)
    found = top.found
    if not found:
        return
    own = {name: entry(found[name]) for name in search.adapters if name in found}
    best = entry(found[None]) | {"metric": search.metric, "per_adapter": own}
    if search.retains:
        best |= {"rule": RULE, "front": [entry(trial) for trial in top.front]}
    write_hashed(folder / "best.json", best)
