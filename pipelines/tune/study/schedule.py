"""A schedule file: the configuration of a run, its changes by epoch, and whose weights it had.

Flows in: the configuration of a run with its changes, and where it was found. Flows out:
`schedule.json`, and from it the configuration again: trained anew, it ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.adapters.registry import make_config
from trainables.changes import Change, read_changes, write_changes
from trainables.config import TrainConfig, flatten, replace
from trainables.errors import DataError, unknown
from trainables.files import read_json, write_json

FORMAT = "cliptune-schedule-1"
PLACE = ("study", "features_key", "draw_key", "metric", "seed")  # where it was found


@dataclass(frozen=True)
class Schedule:
    """A configuration that changes, and its provenance."""

    config: TrainConfig
    place: Mapping[str, Any]  # by `PLACE`
    lineage: Sequence[Mapping[str, Any]] = field(default_factory=tuple)  # whose weights, from when

    def write(self, path: Path) -> None:
        config = flatten(self.config)
        changes = read_changes(str(config.pop("changes")))
        epochs = []
        for change in changes:
            typed = flatten(replace(self.config, {**change.values, "changes": ""}))
            values = {name: typed[name] for name in change.values}
            epochs.append({"from_epoch": change.from_epoch, "values": values})
        place = {name: self.place.get(name) for name in PLACE}
        about = {"format": FORMAT, **place, "config": config}
        write_json(path, {**about, "epochs": epochs, "lineage": list(self.lineage)})


def read_schedule(path: Path) -> Schedule:
    """The schedule in `path`; anything that is not one is an error."""
    found = read_json(path)
    wanted = {"format", *PLACE, "config", "epochs", "lineage"}
    _check_keys(path, found, wanted)
    if found["format"] != FORMAT:
        raise DataError(f"`{path}` must be of format {FORMAT}, got {found['format']!r}.")
    _check(path, isinstance(found["epochs"], list), "epochs", "a list", found["epochs"])
    _check(path, isinstance(found["lineage"], list), "lineage", "a list", found["lineage"])
    changes = [_change(path, one) for one in found["epochs"]]
    fields = found["config"]
    _check(path, isinstance(fields, dict) and "name" in fields, "config", "with a `name`", fields)
    values = {key: value for key, value in fields.items() if key != "name"}
    config = make_config(str(fields["name"]), values | {"changes": write_changes(changes)})
    return Schedule(config, {name: found[name] for name in PLACE}, found["lineage"])


def _change(path: Path, found: Any) -> Change:
    _check_keys(path, found, {"from_epoch", "values"})
    epoch, values = found["from_epoch"], found["values"]
    _check(path, type(epoch) is int, "from_epoch", "a whole number", epoch)
    right = isinstance(values, dict) and all(type(v) in (int, float) for v in values.values())
    _check(path, right and bool(values), "values", "numbers by field", values)
    return Change(epoch, values)


def _check_keys(path: Path, found: Any, wanted: set[str]) -> None:
    _check(path, isinstance(found, dict), "each part", "an object", found)
    if missing := sorted(wanted - found.keys()):
        raise DataError(f"`{path}` is no schedule: it lacks `{missing[0]}`.")
    for name in found.keys() - wanted:
        raise DataError(f"`{path}`: " + unknown("key", name, wanted))


def _check(path: Path, rule: bool, name: str, text: str, value: Any) -> None:
    if not rule:
        raise DataError(f"`{path}`: `{name}` must be {text}, got {value!r}.")
