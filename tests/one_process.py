"""A search in one process: what Ray Tune does between workers, scheduler and searcher, without Ray.

Flows in: a study's folder, wherever it stands. Flows out: the folder of a finished search. On the
way, every change to the folder's files passes `Watch`, which can look at the disk just before it,
or let the worker die there.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna

from pipelines.tune.callbacks import Losses
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.schedulers.asha import EarlyStopping
from pipelines.tune.study.best import write_best
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import open_study
from trainables.trials.jobs import Job
from trainables.trials.runners import InProcess
from trainables.trials.workbench import TrialSettings

CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """The process that was about to write is gone."""


@dataclass
class Watch:
    """Calls `before` with the name of each change to files in `folder` that is about to happen."""

    folder: Path
    before: Callable[[str], None]
    busy: bool = field(default=False, init=False)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy or not (event in CHANGES or (event == "open" and args[2] & WRITES)):
            return
        path = str(args[1 if event in ("os.rename", "os.symlink") else 0])
        if not path.startswith(f"{self.folder}/"):
            return
        self.busy = True
        try:
            self.before(f"{event.removeprefix('os.')} {path.removeprefix(f'{self.folder}/')}")
        finally:
            self.busy = False


WATCHES: list[Watch] = []


@functools.cache
def listen() -> None:
    """Python tells its audit hooks what it is about to do to files. A hook cannot be removed."""
    sys.addaudithook(lambda event, args: [watch(event, args) for watch in WATCHES] and None)


@contextmanager
def watching(folder: Path, before: Callable[[str], None]) -> Iterator[None]:
    listen()
    WATCHES.append(Watch(folder, before))
    try:
        yield
    finally:
        WATCHES.pop()


@contextmanager
def snapshots(whole: Path, to: Path) -> Iterator[list[str]]:
    """Each disk that a kill may leave of `whole`, in `to`, under its place in the list of changes.

    What lies in a folder that is being made, or belongs to a lock, is looked at here and there:
    nobody reads it.
    """
    changes: list[str] = []

    def before(change: str) -> None:
        changes.append(change)
        if len(changes) % 9 == 0 or not re.search(r"\.new/|\.lock", change):
            copy(whole, to / f"{len(changes) - 1:04}")

    with watching(whole, before):
        yield changes


def copy(whole: Path, to: Path) -> None:
    """Files are replaced, not changed, and so can be shared; all but the journal."""

    def link_or_copy(source: str, target: str) -> None:
        (shutil.copy if "journal." in source else os.link)(source, target)

    shutil.copytree(whole, to, symlinks=True, copy_function=link_or_copy)


class Driver:
    """What one life of a driver holds in memory, and `Tuner.fit` of it."""

    def __init__(
        self,
        search: Search,
        settings: TrialSettings,
        fuse: int,
        workers: int,
        study: optuna.Study | None = None,
    ) -> None:
        study = study or open_study(settings.folder, search.retains)
        write_best(study, search, settings.folder)
        self.settings = settings
        self.searcher = StudySearcher(study, search, settings.folder, fuse)
        self.scheduler: Any = EarlyStopping(study, search, self.searcher.budget)
        self.losses = Losses(self.searcher)
        self.workers = {slot: InProcess(settings) for slot in range(workers)}
        self.trials: dict[int, Any] = {}  # what a worker trains, by slot
        self.names = (f"trial{n}" for n in itertools.count())

    def fit(self) -> None:
        while self._fill():
            for slot, trial in list(self.trials.items()):
                self._step(slot, trial)

    def _fill(self) -> bool:
        """Give each idle worker a trial; whether any has one."""
        for slot in sorted(self.workers.keys() - self.trials.keys()):
            name = next(self.names)
            config = self.searcher.suggest(name)
            if isinstance(config, dict):
                trial = SimpleNamespace(trial_id=name, config=config, error_file=None)
                self.trials[slot] = trial
                self.scheduler.on_trial_add(None, trial)
                self.workers[slot].start(Job(**config))
        return bool(self.trials)

    def _step(self, slot: int, trial: Any) -> None:
        """An epoch of a worker, and what Tune's controller makes of it."""
        try:
            result = self.workers[slot].advance()
        except Killed:
            del self.trials[slot]
            self.workers[slot] = InProcess(self.settings)
            self.scheduler.on_trial_error(None, trial)
            self.searcher.on_trial_complete(trial.trial_id, error=True)
            self.losses.on_trial_error(0, [], trial)
            return
        told = dict(result)
        stop = result["done"] or self.scheduler.on_trial_result(None, trial, told) == "STOP"
        if not stop:
            self.searcher.on_trial_result(trial.trial_id, told)
            return
        del self.trials[slot]
        self.scheduler.on_trial_complete(None, trial, dict(result))
        self.searcher.on_trial_complete(trial.trial_id, dict(result))
        self.workers[slot].close()
