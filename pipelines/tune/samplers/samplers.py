"""Where the next trial of a search looks: each adapter learns from its own trials alone.

Flows in: the study, and a trial whose values are to be drawn. Flows out: its adapter, chosen by
`race.py`, and its values, drawn by one of Optuna's samplers that sees this adapter's trials alone.
If a sampler saw all trials, the best tenth would all be the leading adapter's, and the values of
every other adapter would be drawn at random for ever.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

from pipelines.tune.samplers.history import History, Notes
from pipelines.tune.samplers.race import Race
from pipelines.tune.study.budget import Budget
from pipelines.tune.study.finite import turned, untried
from pipelines.tune.study.kinds import Sampler
from pipelines.tune.study.search import Search, Start
from pipelines.tune.study.study import ADAPTER, RACE
from pipelines.tune.study.sums import Ledger
from search_spaces.common import Space
from trainables.config import Value
from trainables.errors import ConfigError

AGAIN = 8  # draws, before any point is taken that was not tried yet


class Shown(InMemoryStorage):
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
        """The notes that a sampler made on the trial that it was asked for."""
        own = self.get_study_id_from_name(study)
        return self.get_trial(
            self.get_trial_id_from_study_id_trial_number(own, number)
        ).system_attrs


class LikeWithLike(BaseSampler):
    """An Optuna sampler for a study over adapters: `adapter` first, then `<adapter>/<field>`.

    Every trial's values depend on the seed, its number and the trials before it, so a resumed
    search draws as if never stopped (`cmaes` alone starts its covariance anew, from the best).
    """

    def __init__(self, search: Search, budget: Budget) -> None:
        self.search, self.budget = search, budget
        self.notes: Notes = {}
        self.ledger = Ledger(History(search, self.notes))
        self.drawn: tuple[int, str] | None = None  # the trial, its adapter
        self.values: dict[str, Value] = {}
        self.origin = ""
        self.source = ""  # what of that
        self.shape: tuple[str, Mapping[str, Value]] | None = None
        self.race = Race(search, budget)

    @contextmanager
    def of_shape(self, adapter: str, values: Mapping[str, Value]) -> Iterator[None]:
        """A context in which trials that are asked for have this adapter and these values."""
        self.shape = adapter, values
        try:
            yield
        finally:
            self.shape = None

    def begins(self, study: optuna.Study) -> bool:
        """Whether the next trial is one that an adapter begins with."""
        return self.race.begins(study)

    def said(self, number: int) -> dict[str, Any]:
        """Why trial `number` has its adapter and values, where they were drawn here."""
        if self.drawn is None or self.drawn[0] != number:
            return {}
        said: dict[str, Any] = {"origin": self.origin}
        if self.origin == "recipe":
            said["recipe"] = True
        if self.source:
            said["source"] = self.source
        if self.race.last is not None and not self.shape:
            said[RACE] = dataclasses.asdict(self.race.last)
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
        own = self.ledger.of(study.get_trials(deepcopy=False)).own[adapter]
        point = None if self.shape else self._point(adapter, len(own.points - {number}))
        self.source = point.source if point else ""
        if point:
            self.origin = point.origin
            return dict(point.values)
        shown = own.shown()
        self.origin = kind = self.kind
        space = self.search.searched(adapter)
        sampler = make_sampler(
            kind,
            # Of a low-discrepancy sequence the next point, of all others a draw of its own.
            self.search.seed if kind == "qmc" else self.search.seed * 1_000_003 + number,
            max(0, startup(self.search) - len(own.running - {number})),
            shown,
            space,
        )
        storage = Shown(shown)
        study = optuna.create_study(
            storage=storage, sampler=sampler, directions=["maximize"] * self.goals
        )
        with quiet():
            for _ in range(len(own.numbers - {number}) if kind == "qmc" else 0):
                study.ask(space)
            for _ in range(AGAIN):
                trial = study.ask(space)
                values: dict[str, Value] = trial.params | self._shape
                if self._fresh(adapter, values):
                    break
            else:
                values = self._other(adapter, number, values)
        if kind == "cmaes":
            self.notes[number] = storage.noted(study.study_name, trial.number)
        return values

    # -- points that were tried: none is drawn again -----------------------------------------

    @property
    def _shape(self) -> dict[str, Value]:
        return dict(self.shape[1] if self.shape else {})

    def _point(self, adapter: str, tried: int) -> Start | None:
        """The next starting point or hint; None: a sampler draws."""
        while (point := self.search.next_point(adapter, tried)) is not None:
            if self._fresh(adapter, point.values):
                return point
            tried += 1  # a sampler was there before
        return None

    def _fresh(self, adapter: str, values: Mapping[str, Value]) -> bool:
        return not self.budget.tried.had(adapter, values)

    def _untried(self, adapter: str, number: int) -> dict[str, Value] | None:
        space, tried = self.search.searched(adapter), self.budget.tried.points[adapter]
        return untried(space, self._shape, tried, f"{self.search.seed}/{number}")

    def _other(self, adapter: str, number: int, values: dict[str, Value]) -> dict[str, Value]:
        """In the place of `values`, which were tried, a point that was not, if there is one."""
        if adapter in self.budget.tried.points:
            return self._untried(adapter, number) or values
        return turned(adapter, self.search.searched(adapter), values) | self._shape

    def left(self) -> bool:
        """Whether a trial of the shape that is asked for could differ from all before."""
        assert self.shape is not None
        adapter = self.shape[0]
        return adapter not in self.budget.tried.points or self._untried(adapter, 0) is not None

    @property
    def kind(self) -> Sampler:
        return "tpe" if self.search.sampler == "auto" else self.search.sampler

    @property
    def goals(self) -> int:
        return 1 + self.search.retains


class OfOneSpace(BaseSampler):
    """A sampler that is told the space, which it would otherwise find out by comparing all
    trials."""

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
    return max(4, search.size // (8 * len(search.adapters)))


def make_sampler(
    kind: Sampler, seed: int, startup: int, shown: Sequence[FrozenTrial], space: Space
) -> BaseSampler:
    """Optuna's sampler for the trials of one adapter, all of whose values are searched together."""
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
                source_trials=_numbers(shown, space),
                seed=seed,
                n_startup_trials=startup,
                warn_independent_sampling=False,
            )
        tpe = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
        )
        return OfOneSpace(tpe, space)


def _numbers(shown: Sequence[FrozenTrial], space: Space) -> list[FrozenTrial] | None:
    """The points from which a covariance starts, at the mean of the best tenth: the numbers of all
    trials that ended, ten times each, as with fewer than ten trials a tenth would be the best one
    alone."""
    free = {
        name: one
        for name, one in space.items()
        if not (isinstance(one, CategoricalDistribution) or one.single())
    }
    ended = [
        optuna.trial.create_trial(
            values=trial.values,
            params={name: trial.params[name] for name in free},
            distributions=free,
        )
        for trial in shown
        if trial.values
    ]
    return 10 * ended or None


def check_sampler(search: Search) -> None:
    """Raise where a sampler cannot do what is asked of it."""
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
    """A context without Optuna's warnings of experimental features, which are used here within
    their limits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
