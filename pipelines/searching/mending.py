"""A study whose journal and trials do not fit each other: what is missing, and how it goes on.

Flows in: a study's folder, before anything is written to it. Flows out: nothing where it is whole;
else an error that says what is missing, or, where that was asked for, a study that goes on from
what may be believed, with all else kept aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.searching import journal
from pipelines.searching.journal import NAME, Altered
from trainables.files import write_bytes

ASIDE = "astray"  # in a study's folder: trials that no journal tells of


def check_whole(folder: Path, mend: bool) -> list[str]:
    """What was mended, in sentences. Raises `Altered` where something is missing, and not asked to
    be mended."""
    path = folder / NAME
    size, wrong = journal.intact(path)
    known = journal.trials_of(path, size)
    there = sorted(one for one in (folder / "trials").glob("[0-9]*") if one.is_dir())
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


def _names(trials: Sequence[Path]) -> str:
    shown = ", ".join(one.name for one in trials[:5])
    return f"What is in `trials` as {shown}{' and others' if len(trials) > 5 else ''}"


def _free(folder: Path, stem: str, ending: str = "") -> Path:
    """A name in `folder` that nothing has."""
    number = 1
    while (folder / f"{stem}-{number}{ending}").exists():
        number += 1
    return folder / f"{stem}-{number}{ending}"
