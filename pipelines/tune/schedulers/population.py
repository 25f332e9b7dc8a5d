"""Population-based training on the study: generations of members, and copies of their weights.

Flows in: the study, where each member is one trial. Flows out: the study, with each member's
exploits in its `exploits`, and `schedule.json`, the lineage of the best.

Generations are synchronous: decisions for an epoch are taken when every member has reached it, from
the journal and the seed alone. So the same search ends alike on one worker and on eight. No member
goes on before a generation's decisions are in the journal and its copies are made; until then both
can be made again, so a kill in between loses nothing. A member trains alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler

from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.schedulers.asha import EarlyStopping
from pipelines.tune.schedulers.pbt import (
    Exploit,
    Gain,
    Member,
    Ranges,
    changing,
    exploits,
    values_of,
)
from pipelines.tune.study.best import best_trial
from pipelines.tune.study.schedule import Schedule
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import frozen_trial
from trainables.changes import Change, read_changes, write_changes
from trainables.config import in_epoch
from trainables.files import read_json, write_bytes
from trainables.trials.jobs import members as results_of
from trainables.trials.workbench import config_of

GENERATION = "generation"  # the last epoch whose exploits were made, in the study's attributes


class Legs(FIFOScheduler):
    """A Tune trial is one member's way to the next decision."""

    def __init__(self, study: optuna.Study, search: Search) -> None:
        super().__init__()
        self.study, self.search = study, search

    def on_trial_result(self, _: Any, __: RayTrial, result: dict[str, Any]) -> str:
        mark = next_mark(self.study, self.search)
        there = all(one.get("epoch", mark) >= mark for one in results_of(result).values())
        return str(self.STOP if there else self.CONTINUE)


def next_mark(study: optuna.Study, search: Search) -> int:
    """The epoch at which all members meet next."""
    done = int(study.user_attrs.get(GENERATION, 0))
    return min(done + search.stopping.interval, search.epochs)


def rules(
    study: optuna.Study, search: Search, folder: Path, fuse: int = 1
) -> tuple[StudySearcher, FIFOScheduler]:
    """The searcher and the scheduler of a search."""
    if search.stopping.population:
        return PopulationSearcher(study, search, folder), Legs(study, search)
    searcher = StudySearcher(study, search, folder, fuse)
    return searcher, EarlyStopping(study, search, searcher.budget)


class PopulationSearcher(StudySearcher):
    """Hands out members until all stand at one epoch; then some take the place of others."""

    def __init__(self, study: optuna.Study, search: Search, folder: Path) -> None:
        super().__init__(study, search, folder, fuse=1)
        self._meet_again()
        write_schedule(study, folder)

    def _meet_again(self) -> None:
        """Queue the members behind the next mark; all of them are begun before one trains."""
        mark = next_mark(self.study, self.search)
        self.unfinished, self.waiting = [], []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if max(trial.intermediate_values, default=0) < mark:
                self._queue(trial.number)

    def _suggest(self, trial_id: str) -> Any:
        self._begin()
        if not (self.live or self.unfinished or self.waiting):
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if running:
                self._next_generation(running)
        return super()._suggest(trial_id)

    def _begin(self) -> None:
        """Draw all members before one is trained: none depends on another's result."""
        while not self.budget.over():
            trial = self.study.ask()
            self._sample(trial)
            self._queue(trial.number)
        for begun in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "config" not in begun.user_attrs:  # a driver was killed in the middle of it
                self._sample(self._resumed(begun.number))

    def _ask(self) -> optuna.Trial | None:
        return None

    def _next_generation(self, running: Sequence[FrozenTrial]) -> None:
        """Decide, as one line of the journal; all else follows from that line."""
        mark = next_mark(self.study, self.search)
        key = f"exploits at {mark}"
        if key not in self.study.user_attrs:
            self.study.set_user_attr(key, [asdict(one) for one in self._decide(running, mark)])
        for one in [Exploit(**noted) for noted in self.study.user_attrs[key]]:
            self._note_exploit(one, mark)
            for kind in ("best", "last"):
                copy_checkpoint(self._folder(one.donor) / kind, self._folder(one.number) / kind)
        self.study.set_user_attr(GENERATION, mark)
        self._meet_again()

    def _folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"

    def _decide(self, running: Sequence[FrozenTrial], mark: int) -> list[Exploit]:
        search, members = self.search, []
        for trial in running:
            config = in_epoch(config_of(trial.user_attrs["config"]), mark)
            ranges = changing(config, search.fixed, search.searched(config.name))
            path = reached(self.study, trial, mark)
            members.append(
                Member(
                    *(trial.number, config.name, path[mark], values_of(config, ranges), ranges),
                    best=max(path.values()),
                    gains=self._gains(trial, path, mark, ranges),
                )
            )
        return exploits(members, f"{search.seed}/{mark}", search.stopping.kind == "pb2")

    def _gains(
        self, trial: FrozenTrial, path: dict[int, float], mark: int, ranges: Ranges
    ) -> list[Gain]:
        """The gain of each interval of a lineage."""
        config, step = config_of(trial.user_attrs["config"]), self.search.stopping.interval
        gains = []
        for end in range(2 * step, mark + 1, step):
            flat = values_of(in_epoch(config, end), ranges)
            gained = (path[end] - path[end - step]) / step
            gains.append(Gain(end, path[end - step], flat, gained))
        return gains

    def _note_exploit(self, one: Exploit, mark: int) -> None:
        """Note in the journal that the loser goes on as its donor, with values of its own."""
        trial, donor = self._resumed(one.number), frozen_trial(self.study, one.donor)
        config = dict(donor.user_attrs["config"])
        ahead = [*read_changes(str(config.get("changes", ""))), Change(mark + 1, one.values)]
        config["changes"] = write_changes(ahead)
        noted = [e for e in trial.user_attrs.get("exploits", []) if e["epoch"] < mark]
        noted.append({"epoch": mark, "donor": one.donor, "values": one.values})
        trial.set_user_attr("lineage", [*lineage(donor), [one.number, mark + 1]])
        trial.set_user_attr("exploits", noted)
        trial.set_user_attr("config", config)

    def _end(self, trial: optuna.Trial, result: dict[str, Any], state: TrialState) -> None:
        """Note that a leg ended. The trial has not: it goes on when all have met."""
        if state == TrialState.COMPLETE:
            super()._end(trial, result, state)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        super().on_trial_complete(trial_id, result, error)
        write_schedule(self.study, self.folder)


def lineage(trial: FrozenTrial) -> list[list[int]]:
    """Who trained a trial's weights, and from which epoch on: `[[member, epoch]]`."""
    own: list[list[int]] = trial.user_attrs.get("lineage", [[trial.number, 1]])
    return own


def reached(study: optuna.Study, trial: FrozenTrial, mark: int) -> dict[int, float]:
    """The metric by epoch, along the lineage of a trial's weights."""
    path: dict[int, float] = {}
    for number, epoch in lineage(trial):
        values = frozen_trial(study, number).intermediate_values
        path |= {e: value for e, value in values.items() if epoch <= e <= mark}
    return path


def copy_checkpoint(source: Path, to: Path) -> None:
    """Put checkpoint `source` in the place of `to`, and of the one that `to` could fall back to."""
    new, old = to.with_name(to.name + ".new"), to.with_name(to.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    for path in sorted(source.iterdir()):
        write_bytes(new / path.name, path.read_bytes())
    for gone in (old, to):
        shutil.rmtree(gone, ignore_errors=True)
    new.rename(to)


def write_schedule(study: optuna.Study, folder: Path) -> None:
    """Write `schedule.json`: the values of the best trial by epoch, and the lineage of its
    weights."""
    top = best_trial(study)
    if top is None:
        return
    place = read_json(folder / "study.json") | {"study": str(folder)}
    line = [{"member": number, "from_epoch": epoch} for number, epoch in lineage(top)]
    Schedule(config_of(top.user_attrs["config"]), place, line).write(folder / "schedule.json")
