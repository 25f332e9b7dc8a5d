"""A study where people look at runs: as a run, its trials as runs in it.

Flows in: the study. Flows out: it and its trials as the journal has them, told to each record
keeper. So trials that train together have a run each, and a resumed search begins none twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from pipelines.console import say
from pipelines.records.keeper import About, Keeper, State, measured
from pipelines.records.kinds import Log
from pipelines.records.mirror import Mirror, Seen
from pipelines.records.registry import KEEPERS
from pipelines.records.tensorboard import TensorBoard
from pipelines.runs.provenance import versions
from pipelines.tune.study.study import OVER
from trainables.files import read_json

ENDS: dict[str, State] = {"complete": "complete", "pruned": "pruned", "fail": "failed"}
STUDY = ("task", "metric", "adapters", "budget", "epochs", "seed", "sampler", "folds")


@contextmanager
def recording(log: Sequence[Log], study: optuna.Study, folder: Path) -> Iterator[list[Mirror]]:
    """What tells each record keeper, while the block runs. Raises `CliptuneError` before it where
    one cannot be reached."""
    about = about_study(folder)
    kinds: list[type[Keeper]] = [TensorBoard, *(KEEPERS[name] for name in log)]
    mirrors = [Mirror(kind(folder), folder, about) for kind in kinds]
    state: State = "interrupted"
    try:
        yield mirrors
        state = "complete"
    finally:
        begun = [one for one in study.get_trials(deepcopy=False) if "config" in one.user_attrs]
        last = [*(seen(one, folder) for one in begun), _outcome(about, folder, state)]
        for mirror in mirrors:
            line = mirror.close(last)
            if mirror.lacking or mirror.keeper.name in log:
                say(line)


def about_study(folder: Path) -> About:
    """What `study.json` says of a study."""
    study = read_json(folder / "study.json")
    params = {name: _text(study[name]) for name in STUDY if study.get(name) is not None}
    tags = {
        "cliptune.version": versions()["cliptune"],
        "cliptune.objective": study["metric"],
        "cliptune.features": study["features_key"],
        **({"cliptune.draw": str(study["draw_key"])} if study.get("draw_key") else {}),
        "cliptune.folder": str(folder),
    }
    scheduler = {"scheduler": study["stopping"]["kind"]} if "stopping" in study else {}
    return About("", folder.name, params=params | scheduler, tags=tags)


def seen(trial: FrozenTrial, folder: Path) -> Seen:
    """A trial as the journal has it."""
    attrs = trial.user_attrs
    config = dict(attrs.get("config", {}))
    adapter = str(config.pop("name", ""))
    state = trial.state.name.lower()
    tags = {"cliptune.state": state, "cliptune.trial": str(trial.number)}
    for name, said in (("reason", attrs.get("reason")), ("origin", attrs.get("origin"))):
        tags |= {f"cliptune.{name}": str(said)} if said else {}
    tags |= {"cliptune.over_a_limit": "true"} if OVER in attrs else {}
    own = folder / "trials" / f"{trial.number:04d}"
    about = About(
        "",
        f"{trial.number:04d} {adapter}",
        trial.number,
        {"adapter": adapter, **config},
        tags | {"cliptune.folder": str(own)},
    )
    names = ("best", "best_epoch", "trainable_parameters", "retained")
    return Seen(
        about,
        own,
        epochs=max(trial.intermediate_values, default=0),
        started=trial.datetime_start.timestamp() if trial.datetime_start else 0.0,
        state=ENDS.get(state, "running"),
        metrics=measured({name: attrs[name] for name in names if name in attrs}),
        tags=tags,
    )


def _outcome(about: About, folder: Path, state: State) -> Seen:
    """What a study came to, as far as it has come."""
    path = folder / "best.json"
    best = read_json(path) if path.exists() else None
    if best is None:
        return Seen(about, folder, state=state)
    tags = {
        "cliptune.best.adapter": best["adapter"],
        "cliptune.best.trial": str(best["trial"]),
        "cliptune.best.checkpoint": str(folder / best["path"] / "best"),
        "cliptune.words": str(best.get("chosen", {}).get("words", "")),
    }
    trial = {} if best["trial"] is None else {"best_trial": best["trial"]}
    return Seen(
        about, folder, state=state, metrics=measured({"best": best["value"], **trial}), tags=tags
    )


def _text(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
