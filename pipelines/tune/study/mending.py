"""A study that was damaged: what is missing, and how it goes on.

Flows in: a study's folder, before anything else is written to it. Flows out: nothing where it is
whole. Where journal and trials do not fit each other: an error that says what is missing, or, if
that was asked for, a study that goes on from the intact part, with all else kept aside. Where a
checkpoint of a trial that ended is damaged: the same checkpoint, trained again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna

from pipelines.tune.study import journal
from pipelines.tune.study.journal import NAME, Altered
from pipelines.tune.study.search import Search
from trainables.adapters.registry import BASELINES
from trainables.errors import CheckpointError
from trainables.files import write_bytes
from trainables.training.integrity import verify
from trainables.trials.jobs import FOLDS
from trainables.trials.workbench import Workbench

ASIDE = "astray"  # in a study's folder: trials that no journal tells of


def check_whole(folder: Path, mend: bool) -> list[str]:
    """What was mended, in sentences. Raises `Altered` where something is missing and mending was
    not asked for."""
    path = folder / NAME
    size, wrong = journal.intact(path)
    there = sorted(one for one in (folder / "trials").glob("[0-9]*") if one.is_dir())
    if not (wrong or there):
        return []
    known = journal.trials_of(path, size)
    begun = {trial.number for trial in known if "config" in trial.user_attrs}
    astray = [one for one in there if not one.name.isdecimal() or int(one.name) not in begun]
    if not wrong and not astray:
        return []
    ended = sum(trial.state.is_finished() for trial in known)
    what = (
        f"{wrong or f'`{path}` does not tell of all that was trained'}: it tells of {len(begun)} "
        f"trials, {ended} of which ended, and `trials` has {len(there)}"
    )
    if not mend:
        lost = f" {_names(astray)} would be trained anew." if astray else ""
        raise Altered(
            f"{what}. Put back a copy of the file; or give `--mend`, and the search goes on from "
            f"what it tells, with all else kept aside.{lost}"
        )
    said = [f"mended: {what}."]
    if wrong:
        kept = _free(folder, "journal-damaged", ".log")
        write_bytes(kept, path.read_bytes() if path.exists() else b"")
        journal.cut(path, size)
        said.append(f"The journal as it was is kept in `{kept}`.")
    if astray:
        kept = _free(folder, ASIDE)
        kept.mkdir()
        for one in astray:
            one.rename(kept / one.name)
        said.append(f"{_names(astray)} is kept in `{kept}` and trained anew.")
    return said


def restore(
    study: optuna.Study, search: Search, folder: Path, make: Callable[[], Workbench]
) -> Iterator[str]:
    """Train again, in this process, damaged runs that the choice looks at; what was done, in words.
    A run is a function of its configuration, so the same bytes come of it."""
    bench: Workbench | None = None
    ended = [one for one in study.get_trials(deepcopy=False) if "best" in one.user_attrs]
    for trial in ended:
        own = folder / "trials" / f"{trial.number:04d}"
        if not (wrong := _damage(own / "best")):
            continue
        epochs, then = trial.user_attrs["epochs"], trial.user_attrs["best"]
        yield f"trial {trial.number}: {wrong} It is trained again, to epoch {epochs}."
        _clear(own)
        bench = bench or make()
        run = bench.resume(trial.number, trial.user_attrs["config"])
        while run.epoch < epochs and not run.finished:
            run.advance()
        if run.best and run.best[run.metric] != then:
            here = run.best[run.metric]
            yield f"trial {trial.number}: {run.metric} is {here:.4f} here, was {then:.4f}."
    baseline = folder / BASELINES[search.task]
    if baseline.is_dir() and (wrong := _damage(baseline / "best")):
        yield f"{wrong} It is measured again."
        _clear(baseline)
        (bench or make()).baseline(search.task)


def _damage(checkpoint: Path) -> str:
    try:
        verify(checkpoint)
    except CheckpointError as error:
        return str(error)
    return ""


def _clear(run: Path) -> None:
    """Remove a run's checkpoints and those of its folds."""
    for pattern in ("best*", "last*", FOLDS):
        for path in run.glob(pattern):
            shutil.rmtree(path)


def _names(trials: Sequence[Path]) -> str:
    shown = ", ".join(one.name for one in trials[:5])
    return f"What is in `trials` as {shown}{' and others' if len(trials) > 5 else ''}"


def _free(folder: Path, stem: str, ending: str = "") -> Path:
    """A name in `folder` that nothing has."""
    number = 1
    while (folder / f"{stem}-{number}{ending}").exists():
        number += 1
    return folder / f"{stem}-{number}{ending}"
