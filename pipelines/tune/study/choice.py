"""Which trial is the answer: the trials' values on val flow in, `best.json` flows out.

Forty val images have forty-one possible accuracies, and the highest of many trials is mostly luck.
So for classes the metric does not decide alone. Among the trials that two paired standard errors,
over the val images, cannot tell from the best, the likeliest is taken: at its best temperature (Guo
et al. 2017, arXiv:1706.04599) under Platt's guard (`calibrated_likelihood`), first within each
adapter, then between them. Among adapters whose likelihood lies within one paired standard error of
the highest, the one with the fewest trainable parameters is taken (Breiman et al. 1984; Hastie et
al. 2009, 7.10). With many images the errors are small and the metric decides alone, as it does
without classes. The baseline, which needs no training, takes part.

Measured before that guard existed, on 24 trials of four heads, 16 shots, drawn 150 times from 49 of
each (EuroSAT and Pets by a small CLIP, the demo's classes): 50.5 % on test, where the highest val
accuracy gives 49.1. With 4 folds over the shots beside val (17 of each; EuroSAT twice, Pets): 42.4
against 41.6 without, and 41.7 against 40.1 by the highest accuracy; better on EuroSAT, 0.4 worse on
Pets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from pipelines.runs.baselines import WORDS
from pipelines.tune.study.best import best_of
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import OVER, goals
from trainables.adapters.registry import BASELINES
from trainables.files import write_hashed
from trainables.metrics.balance import RULE, standing
from trainables.statistics.bootstrap import Array, Bootstrap
from trainables.training.checkpoint import val_values
from trainables.training.measure import CALIBRATED
from trainables.training.rows import rows_of
from trainables.training.selection import LIKELIHOOD

NEAR = 2.0  # paired standard errors of the metric within which likelihood decides
RESAMPLES = 1000
MOST = 64  # trials of an adapter that the resamples choose among


@dataclass(frozen=True)
class Entrant:
    """A trial, or the baseline, with its values on val."""

    adapter: str
    path: str  # in the study's folder
    value: float
    trial: int | None = None
    parameters: int = 0
    retained: float | None = None
    likelihood: float = 0.0  # of equal values the likelier comes first
    values: Array | None = field(default=None, repr=False)  # (N,) whose mean is the metric
    likely: Array | None = field(default=None, repr=False)  # (N,) log-likelihoods after temperature

    @property
    def order(self) -> tuple[float, ...]:
        """The order by the metric alone: highest first, among equals the baseline first."""
        return (*standing(self.value, self.retained), self.likelihood, self.trial is None)

    def entry(self, retains: bool) -> dict[str, Any]:
        own = {"trial": self.trial, "adapter": self.adapter, "value": self.value}
        return own | ({"retained": self.retained} if retains else {}) | {"path": self.path}


def write_choice(study: optuna.Study, search: Search, folder: Path, baseline: bool = True) -> str:
    """Write `best.json` of a study that ended: the choice, each adapter's own, and how sure the
    choice is; with two goals, also the front. `baseline`: whether the baseline takes part. The
    result is the choice in words; empty where no trial succeeded."""
    trials = _trials(study, folder)
    if not trials:
        return ""
    entrants = [*(_baseline(search, folder) if baseline else ()), *trials]
    # Of two goals the balance decides; a schedule is of the trial that the metric alone chose.
    plain = search.retains or search.stopping.population
    own = {
        name: max(of, key=lambda one: one.order) if plain else likeliest(of)
        for name in search.adapters
        if (of := [one for one in trials if one.adapter == name])
    }
    rivals = [*(one for one in entrants if one.trial is None), *own.values()]
    top = max(rivals, key=lambda one: one.order) if plain else simplest(rivals)
    best = top.entry(search.retains) | {
        "metric": search.metric,
        "per_adapter": {name: one.entry(search.retains) for name, one in own.items()},
    }
    if search.retains:
        fronts = [next(t for t in trials if t.trial == f.number) for f in best_of(study).front]
        best |= {"rule": RULE, "front": [one.entry(True) for one in fronts]}
    sure = {} if plain else how_sure(top, rivals, entrants)
    words = in_words(top, sure, search.folds)
    write_hashed(folder / "best.json", best | {"chosen": sure | {"words": words}})
    return words


def likeliest(entrants: Sequence[Entrant]) -> Entrant:
    """Among those that the metric cannot tell from the best, the one with the highest
    likelihood."""
    top = max(entrants, key=lambda one: one.order)
    if top.likely is None:
        return top
    return max(_near(top, entrants), key=lambda one: (_mean(one.likely), *one.order))


def simplest(entrants: Sequence[Entrant]) -> Entrant:
    """The choice between adapters: as `likeliest`, or a simpler adapter within one standard error
    of it."""
    top = max(entrants, key=lambda one: one.order)
    if top.likely is None:
        return top
    near = _near(top, entrants)
    best = max(near, key=lambda one: (_mean(one.likely), *one.order))
    return min(
        (one for one in near if _mean(best.likely) - _mean(one.likely) <= _error(best, one)),
        key=lambda one: (one.parameters, -_mean(one.likely)),
    )


def how_sure(
    top: Entrant, rivals: Sequence[Entrant], entrants: Sequence[Entrant]
) -> dict[str, Any]:
    """The share of resamples of the val images in which the adapter of `top` is above the next one,
    and above the baseline; each adapter's best is chosen anew in each. Ties count half."""
    by_likelihood = top.likely is not None
    sized = [one for one in entrants if top.values is not None and _comparable(top, one)]
    others = [one for one in rivals if one.adapter != top.adapter and one in sized]
    if top.values is None or not others:
        return {}
    images = len(top.values)
    counts = Bootstrap(images, RESAMPLES).counts.astype(np.float64)  # (R, N)

    def decides(one: Entrant) -> Array:
        found = one.likely if by_likelihood else one.values
        assert found is not None
        return found

    def best(adapter: str) -> Array:  # (R,)
        of = sorted((e for e in sized if e.adapter == adapter), key=lambda e: -_mean(decides(e)))
        return np.asarray((counts @ np.stack([decides(e) for e in of[:MOST]]).T).max(1) / images)

    def share(rival: Entrant) -> float:
        gap = best(top.adapter) - best(rival.adapter)
        return float(((gap > 1e-12) + 0.5 * (abs(gap) <= 1e-12)).mean())

    runner_up = max(others, key=lambda one: _mean(decides(one)))
    plain = next((one for one in others if one.trial is None), None)
    simpler = _mean(decides(runner_up)) > _mean(decides(top))
    return {
        "images": images,
        "by": "simplicity" if simpler else "likelihood" if by_likelihood else "metric",
        "over": runner_up.adapter,
        "probability": share(runner_up),
        **({"baseline": plain.adapter, "over_baseline": share(plain)} if plain else {}),
    }


def in_words(top: Entrant, sure: dict[str, Any], folds: int = 0) -> str:
    """The choice in a sentence."""
    where = f"by {folds} folds and val" if folds else "on val"
    who = f"trial {top.trial}, {top.adapter}" if top.trial is not None else called(top.adapter)
    words = f"chosen {where}: {who}" + (f", {confidence(sure)}" if sure else "")
    return words + ("." if top.trial is not None else "; no adapter beat it.")


def confidence(sure: dict[str, Any]) -> str:
    """How sure a choice is, for the end of a sentence."""
    over = called(sure["over"])
    how = f"with {sure['probability']:.0%} probability over {over}"
    if sure["by"] == "simplicity":
        how = f"as simpler than {over}, which is within one standard error; {how}"
    if "over_baseline" in sure and sure["baseline"] != sure["over"]:
        how += f" and {sure['over_baseline']:.0%} over {called(sure['baseline'])}"
    by = "likelihood" if sure["by"] != "metric" else "the metric"
    return f"{how} (by {by}, resampling {sure['images']:,} images)"


def called(adapter: str) -> str:
    return WORDS.get(adapter, adapter)


def _trials(study: optuna.Study, folder: Path) -> list[Entrant]:
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [_trial(one, folder) for one in ended if OVER not in one.user_attrs]


def _trial(trial: FrozenTrial, folder: Path) -> Entrant:
    attrs, path = trial.user_attrs, f"trials/{trial.number:04d}"
    return Entrant(
        adapter=attrs["config"]["name"],
        path=path,
        value=goals(trial)[0],
        trial=trial.number,
        parameters=int(attrs.get("trainable_parameters", 0)),
        retained=goals(trial)[1],
        likelihood=attrs.get("likelihood", 0.0),
        **_per_image(folder / path / "best"),
    )


def _baseline(search: Search, folder: Path) -> Iterable[Entrant]:
    """The baseline as trial 0 measured it; None where it did not come to that."""
    name = BASELINES[search.task]
    for row in rows_of(folder / name)[-1:]:
        if search.metric in row:
            yield Entrant(
                adapter=name,
                path=name,
                value=float(row[search.metric]),
                retained=row.get("val/retained"),
                likelihood=float(row.get(LIKELIHOOD, 0.0)),
                **_per_image(folder / name / "best"),
            )


def _per_image(folder: Path) -> dict[str, Any]:
    """One value an image: the sum over its queries, scaled so that the mean over images is the
    metric."""
    kept = val_values(folder)
    if not kept:
        return {}
    _, images = np.unique(kept["image"].numpy(), return_inverse=True)
    sizes = np.bincount(images)

    def summed(name: str) -> Array:
        return np.bincount(images, kept[name].double().numpy()) * len(sizes) / len(images)

    return {"values": summed("value")} | (
        {"likely": summed(CALIBRATED)} if CALIBRATED in kept else {}
    )


def _near(top: Entrant, entrants: Iterable[Entrant]) -> list[Entrant]:
    """Those whose metric lies within `NEAR` paired standard errors of the best's."""
    return [
        one
        for one in entrants
        if _comparable(top, one)
        and _mean(top.values) - _mean(one.values) <= NEAR * _error(top, one, "values")
    ]


def _comparable(top: Entrant, one: Entrant) -> bool:
    """Whether both have values of the same images."""
    own, its = (None if e.values is None else (len(e.values), e.likely is None) for e in (top, one))
    return own is not None and own == its


def _error(one: Entrant, other: Entrant, what: str = "likely") -> float:
    """The standard error of the mean of paired differences, plus what rounding adds to it."""
    gaps = getattr(one, what) - getattr(other, what)
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    return spread / math.sqrt(len(gaps)) + 1e-9


def _mean(values: Array | None) -> float:
    assert values is not None
    return float(values.mean())
