"""Where the next trial of a search looks: each adapter learns from its own trials alone.

Flows in: the study, and a trial whose values are to be drawn. Flows out: its adapter, chosen by
`race.py`, and its values, drawn by one of Optuna's samplers that sees that adapter's trials and no
other's. Seen together, the best tenth of all trials is the leading adapter's, and every other one
would be drawn at random for ever.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from pipelines.searching.budget import Budget
from pipelines.searching.kinds import Sampler
from pipelines.searching.race import Race, standings
from pipelines.searching.study import ADAPTER, Search, adapter_of
from search_spaces.common import Space
from trainables.config import Value
from trainables.errors import ConfigError

SHOWN = 200  # trials at most; the model of any sampler is as good with these, and its cost bounded
TOP = 25  # of them the best: as many as TPE takes for good ones at most


class Own(InMemoryStorage):
    """One adapter's trials, and no other's, as a storage that a sampler reads."""

    def __init__(self, shown: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self.shown = shown

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Any = None
    ) -> list[FrozenTrial]:
        del study_id, deepcopy
        return [trial for trial in self.shown if states is None or trial.state in states]

    def noted(self, study: str, number: int) -> dict[str, Any]:
        """What a sampler wrote down of the trial that it was asked for."""
        own = self.get_study_id_from_name(study)
        return self.get_trial(
            self.get_trial_id_from_study_id_trial_number(own, number)
        ).system_attrs


@dataclass
class View:
    """What is kept of an adapter between two of its trials."""

    ended: dict[int, FrozenTrial]  # by number, in the sampler's terms
    notes: dict[int, dict[str, Any]]  # what a sampler wrote down of trials; lost with the process


class LikeWithLike(BaseSampler):
    """An Optuna sampler for a study over adapters: `adapter` first, then `<adapter>/<field>`.

    Every trial's values depend on the seed, its number and the trials before it, so a resumed
    search draws as if never stopped (`cmaes` alone starts its covariance anew, from the best).
    """

    def __init__(self, search: Search, budget: Budget) -> None:
        self.search = search
        self.views: dict[str, View] = {}
        self.drawn: tuple[int, str] | None = None  # the trial, its adapter
        self.values: dict[str, Value] = {}
        self.origin = ""
        self.shape: tuple[str, Mapping[str, Value]] | None = None
        self.race = Race(search, budget)

    @contextmanager
    def of_shape(self, adapter: str, values: Mapping[str, Value]) -> Iterator[None]:
        """Trials that are asked for inside are of this adapter, with these values."""
        self.shape = adapter, values
        try:
            yield
        finally:
            self.shape = None

    def begins(self, study: optuna.Study) -> bool:
        """Whether the next trial is one that an adapter begins with."""
        return any(one.begins for one in standings(study.get_trials(deepcopy=False), self.search))

    def said(self, number: int) -> dict[str, Any]:
        """Why trial `number` is what it is, where its values were drawn here."""
        if self.drawn is None or self.drawn[0] != number:
            return {}
        said: dict[str, Any] = {"origin": self.origin}
        if self.origin == "recipe":
            said["recipe"] = True
        if self.race.last is not None and not self.shape:
            said["race"] = dataclasses.asdict(self.race.last)
        return said

    # -- what Optuna asks -------------------------------------------------------------------

    def infer_relative_search_space(self, *_: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        del distribution
        if name == ADAPTER:
            return self.shape[0] if self.shape else self.race.next(study)
        adapter, _, field = name.partition("/")
        if self.drawn != (trial.number, adapter):
            self.values = self._draw(study, trial.number, adapter)
            self.drawn = trial.number, adapter
        return self.values[field]

    # -- one adapter's values ---------------------------------------------------------------

    def _draw(self, study: optuna.Study, number: int, adapter: str) -> dict[str, Value]:
        own = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.number != number and adapter_of(trial) == adapter
        ]
        starts = self.search.starts(adapter)
        if len(own) < len(starts) and not self.shape:
            start = starts[len(own)]
            self.origin = start.origin
            return dict(start.values)
        view = self.views.setdefault(adapter, View({}, {}))
        shown = self._shown(view, own)
        running = sum(trial.state == TrialState.RUNNING for trial in own)
        self.origin = kind = self.kind
        space = self.search.searched(adapter)
        sampler = make_sampler(
            kind,
            # Of a low-discrepancy sequence the next point, of all others a draw of its own.
            self.search.seed if kind == "qmc" else self.search.seed * 1_000_003 + number,
            max(0, startup(self.search) - running),
            shown,
            space,
        )
        storage = Own(shown)
        study = optuna.create_study(
            storage=storage, sampler=sampler, directions=["maximize"] * self.goals
        )
        with quiet():
            for _ in range(len(own) if kind == "qmc" else 0):
                study.ask(space)
            trial = study.ask(space)
        if kind == "cmaes":
            view.notes[number] = storage.noted(study.study_name, trial.number)
        return trial.params | dict(self.shape[1] if self.shape else {})

    @property
    def kind(self) -> Sampler:
        return "tpe" if self.search.sampler == "auto" else self.search.sampler

    @property
    def goals(self) -> int:
        return 1 + self.search.retains

    def _shown(self, view: View, own: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """What the sampler sees: the best of the trials, and of the others every second, fourth,
        ... one where they are many."""
        found = []
        for trial in own:
            if trial.number not in view.ended:
                seen = self._seen(trial, view)
                if seen is None:
                    continue
                if not trial.state.is_finished():
                    found.append(seen)
                    continue
                view.ended[trial.number] = seen
            found.append(view.ended[trial.number])
        if len(found) <= SHOWN:
            return found
        best = sorted(found, key=lambda one: -sum(one.values or [float("-inf")]))[:TOP]
        step = 1
        while len(found) // step > SHOWN - TOP:
            step *= 2
        kept = {one.number for one in (*best, *found[::-step])}
        return [one for one in found if one.number in kept]

    def _seen(self, trial: FrozenTrial, view: View) -> FrozenTrial | None:
        """A trial as a sampler is to see it: by the best that it reached, however long it ran. As
        Optuna tells it, one that was stopped early would stand behind all that were not."""
        prefix = f"{adapter_of(trial)}/"
        space = self.search.searched(prefix[:-1])
        params = {
            name.removeprefix(prefix): value
            for name, value in trial.params.items()
            if name.removeprefix(prefix) in space
        }
        if params.keys() != space.keys():
            return None  # a driver was killed between two values
        values = self.search.standing(trial)
        if trial.state.is_finished() and not values:
            return None  # it failed
        return FrozenTrial(
            number=1 + trial.number,  # 0 is the one that is asked for
            trial_id=1 + trial.number,
            state=TrialState.COMPLETE if values else TrialState.RUNNING,
            value=None,
            values=values or None,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params=params,
            distributions=space,
            user_attrs={},
            system_attrs=view.notes.get(trial.number, {}),
            intermediate_values={},
        )


class OfOneSpace(BaseSampler):
    """A sampler that is told what it would else find out by comparing all trials."""

    def __init__(self, sampler: BaseSampler, space: Space) -> None:
        self.sampler = sampler
        self.space = {name: one for name, one in space.items() if not one.single()}

    def infer_relative_search_space(self, *_: Any) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(self, *about: Any) -> dict[str, Any]:
        return self.sampler.sample_relative(*about)

    def sample_independent(self, *about: Any) -> Any:
        return self.sampler.sample_independent(*about)


def startup(search: Search) -> int:
    """How many trials of an adapter are drawn at random before a model of them is trusted."""
    return max(4, search.size // (4 * len(search.adapters)))


def make_sampler(
    kind: Sampler, seed: int, startup: int, shown: Sequence[FrozenTrial], space: Space
) -> BaseSampler:
    """Optuna's own, for the trials of one adapter, all of whose values are searched together."""
    with quiet():
        if kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if kind == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        if kind == "qmc":
            return optuna.samplers.QMCSampler(
                seed=seed, scramble=True, warn_independent_sampling=False
            )
        if kind == "cmaes":
            return optuna.samplers.CmaEsSampler(
                x0=_numbers(shown, space),
                seed=seed,
                n_startup_trials=startup,
                warn_independent_sampling=False,
            )
        tpe = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
        )
        return OfOneSpace(tpe, space)


def _numbers(shown: Sequence[FrozenTrial], space: Space) -> dict[str, Any] | None:
    """Where a covariance starts: at the numbers of the best trial."""
    ended = [trial for trial in shown if trial.values]
    if not ended:
        return None
    best = max(ended, key=lambda trial: trial.values[0])
    free = [name for name, one in space.items() if not isinstance(one, CategoricalDistribution)]
    return {name: best.params[name] for name in free}


def check_sampler(search: Search) -> None:
    """Refuse a sampler that cannot do what is asked of it."""
    kind = search.sampler
    if search.retains and kind in ("gp", "cmaes"):
        rule = "must be auto, tpe, random or qmc beside `--retain`, which has two goals"
        raise ConfigError(f"`--sampler` {rule}, got {kind}.")
    if kind == "cmaes":
        try:
            import cmaes  # noqa: F401
        except ImportError:
            raise ConfigError(
                "`--sampler cmaes` needs the package `cmaes`: pip install cliptune[cmaes]."
            ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's words on what is experimental, and used here within its limits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
