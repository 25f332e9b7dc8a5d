"""The search as the report sees it.

Flows in: a run folder's study.json, its baseline's metrics and its Optuna journal, to which a
running search may be appending. Flows out: a `Study` of plain values. Nothing is written and
nothing is locked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from pipelines.tune.study.journal import NAME, read_trials
from trainables.errors import DataError
from trainables.files import read_json
from trainables.metrics.balance import front, standing
from trainables.training.rows import rows_of

T = TypeVar("T")

OVER = "over a limit"  # as the search notes it
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda found: isinstance(found, list) and all(isinstance(one, kind) for one in found)


KINDS: dict[str, Callable[[Any], bool]] = {  # of study.json and best.json, what is reckoned with
    "adapters": _list_of(str),
    "rungs": lambda found: found is None or _list_of(int)(found),
    "trials": lambda found: found is None or type(found) is int,
    "folds": lambda found: type(found) is int,
    "per_adapter": lambda found: isinstance(found, dict) and _list_of(dict)([*found.values()]),
    "chosen": lambda found: isinstance(found, dict) and isinstance(found.get("words"), str),
}


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried; `curve` is the val metric by epoch."""

    number: int
    adapter: str
    state: str  # a value of STATES
    value: float | None  # its best at any epoch, once it ended; a failed trial has none
    curve: Mapping[int, float]
    params: Mapping[str, Any]  # searched fields, dotted, without the adapter's prefix
    spaces: Mapping[str, BaseDistribution]
    epochs: int
    seconds: float | None
    trainable_parameters: int | None
    reason: str
    recipe: bool
    retained: float | None = None  # at the best epoch, on classes that training never saw
    source: str = ""  # of which earlier trial, or shipped point, it has the values
    race: Mapping[str, Any] = field(default_factory=dict)  # how the adapters stood before it
    over: bool = False  # a limit: never chosen

    @property
    def score(self) -> float | None:
        """The trial's value; while it runs, or after it failed, its best until then."""
        return self.value if self.value is not None else max(self.curve.values(), default=None)

    def rung(self, rungs: list[int]) -> int | None:
        """The last rung that this trial reached."""
        return max((r for r in rungs if r <= max(self.curve, default=0)), default=None)

    def at(self, epoch: int) -> float | None:
        """The metric at `epoch`, or at the last epoch before it that reported one."""
        reported = [e for e in self.curve if e <= epoch]
        return self.curve[max(reported)] if reported else None


@dataclass(frozen=True)
class Study:
    """One search: its plan, and every trial begun so far."""

    metric: str
    planned: int | None
    rungs: list[int]
    trials: list[Trial]
    against: str  # the adapter of the baseline
    baseline: float | None  # its value on val
    facts: Mapping[str, Any]  # study.json, for the page's small print
    baseline_retained: float | None = None  # on val
    choice: Mapping[str, Any] = field(default_factory=dict)  # best.json, once there is one

    @property
    def retains(self) -> bool:
        """Whether the search had two goals: the metric, and what is retained of other classes."""
        return bool(self.facts.get("retain_keys"))

    @cached_property
    def adapters(self) -> list[str]:
        named = [*self.facts.get("adapters", []), *(t.adapter for t in self.trials)]
        return sorted(dict.fromkeys(named), key=lambda name: (name != self.against, name))

    def of(self, adapter: str) -> list[Trial]:
        return [t for t in self.trials if t.adapter == adapter]

    def count(self, state: str) -> int:
        return sum(t.state == state for t in self.trials)

    def best(self, adapter: str | None = None) -> Trial | None:
        """The trial that the search chose. Before it did, the trial with the highest value, stopped
        early or not; of equal ones the earlier. With two goals, the value is their harmonic
        mean."""
        entry = self.choice if adapter is None else self.choice.get("per_adapter", {}).get(adapter)
        number = (entry or {}).get("trial")
        named = [t for t in self.trials if t.number == number and t.value is not None]
        if named:
            return named[0]
        own = [t for t in self.trials if adapter in (None, t.adapter)]
        chosen = [t for t in own if t.value is not None and not t.over]
        return max(
            chosen, key=lambda t: (*standing(t.value or 0.0, t.retained), -t.number), default=None
        )

    @property
    def prefers_baseline(self) -> bool:
        """Whether no adapter beat the baseline on val."""
        return bool(self.choice) and self.choice.get("trial") is None

    @property
    def front(self) -> list[Trial]:
        """With two goals, the complete trials that no other beats in both, the best value first."""
        both = [
            (t, (t.value, t.retained))
            for t in self.trials
            if t.state == "complete"
            and t.value is not None
            and t.retained is not None
            and not t.over
        ]
        return [both[place][0] for place in front([pair for _, pair in both])]

    @property
    def per_adapter(self) -> list[Trial]:
        """The best trial of each adapter, best first."""
        best = [trial for name in self.adapters if (trial := self.best(name))]
        return sorted(best, key=lambda t: -(t.value or 0.0))

    @property
    def unfinished(self) -> bool:
        ended = len(self.trials) - self.count("running")
        return ended < (self.planned or 0) or self.count("running") > 0


def read_study(run: Path) -> Study:
    """The study in `run`; one without study.json (a single `train`) is a study without trials."""
    path = run / "study.json"
    facts = _facts(path)
    adapters = facts.get("adapters", [])
    frozen = read_trials(run / NAME)
    trials = [_trial(t, adapters) for t in frozen if t.state in STATES]
    metric = str(facts.get("metric", "")).removeprefix("val/")
    against = baseline_of(facts.get("task"))
    rows = rows_of(run / against)
    measured = rows[-1] if rows else {}
    return Study(
        metric=metric,
        planned=facts.get("trials"),
        rungs=sorted(facts.get("rungs") or []),
        trials=trials,
        against=against,
        baseline=measured.get(f"val/{metric}"),
        facts=facts,
        baseline_retained=measured.get("val/retained"),
        choice=_facts(run / "best.json"),
    )


def _facts(path: Path) -> dict[str, Any]:
    """The contents of a JSON file of the run, with the fields that the page reads checked; an empty
    object where there is no such file."""
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise DataError(f"`{path}` must be a JSON object, got {found!r:.60}.")
    for name, right in KINDS.items():
        if name in found and not right(found[name]):
            raise DataError(f"`{path}` has a field of a wrong type: `{name}`, {found[name]!r:.60}.")
    return found


def baseline_of(task: str | None) -> str:
    """The adapter that a search of `task` is compared with; older studies name no task.

    The registry of adapters says the same, but reading it needs torch, which a page does without.
    """
    return "nearest_caption" if task == "captioning" else "zero_shot"


def _trial(trial: FrozenTrial, adapters: list[str]) -> Trial:
    attrs = trial.user_attrs
    config = attrs.get("config") or {}
    adapter = trial.params.get("adapter") or config.get("name") or (adapters or ["unknown"])[0]
    prefix = f"{adapter}/"
    curve = {e: v for e, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)}
    return Trial(
        number=trial.number,
        adapter=str(adapter),
        state=STATES[trial.state],
        value=_value(trial, curve),
        curve=curve,
        params=_own(trial.params, prefix),
        spaces=_own(trial.distributions, prefix),
        epochs=int(attrs.get("epochs") or max(curve, default=0)),
        seconds=attrs.get("seconds"),
        trainable_parameters=attrs.get("trainable_parameters"),
        reason=str(attrs.get("reason", "")),
        recipe=bool(attrs.get("recipe")),
        retained=attrs.get("retained"),
        source=str(attrs.get("source", "")),
        race=attrs.get("race") or {},
        over=OVER in attrs,
    )


def _value(trial: FrozenTrial, curve: Mapping[int, float]) -> float | None:
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return None
    told = trial.user_attrs.get("best")
    value = max(curve.values(), default=trial.value) if told is None else float(told)
    return value if value is not None and math.isfinite(value) else None


def _own(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries of this trial's adapter, under their dotted fields."""
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
