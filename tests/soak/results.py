"""What a command leaves, as something to compare.

Flows in: files and folders. Flows out: their content by name, JSON by its leaves, text by its
lines, all else by its hash; and of two undisturbed results, what differs by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.tune.study.journal import NAME, SUMS, Altered
from pipelines.tune.study.study import open_study
from trainables.files import sha256_file

Result = dict[str, Any]
# Of a moment, or for a resumed command alone.
LEFT_OUT = {
    *(
        NAME,
        SUMS,
        "holder.json",
        "ray",
        "records",
        "folds",
        "lazy",
        "widths.json",
        "astray-1",
        "pruned",
    ),
    *(f"{split}.progress.jsonl" for split in ("train", "val")),
}
TEXT = {".md", ".html", ".csv", ".txt"}


def result_of(room: Path, names: Sequence[str]) -> Result:
    """All that lies in a room under these names, and the journals beside them."""
    found: Result = {}
    for place in (room / name for name in names):
        for path in _files(place):
            name = str(path.relative_to(room))
            try:
                found |= dict(_content(name, path))
            except ValueError:
                found[name] = "unreadable"
        if place.name == "trials" and (place.parent / NAME).exists():
            try:
                found |= dict(_told(place.parent))
            except Altered:
                found[NAME] = "altered"
    return found


def differences(one: Result, other: Result) -> set[str]:
    """The names of what is not the same."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    for path in sorted(place.rglob("*")) if place.is_dir() else []:
        parts = path.relative_to(place).parts
        hidden = any(part.startswith(".") or part.endswith((".old", ".new")) for part in parts)
        if path.is_file() and not hidden and not LEFT_OUT & {*parts}:
            yield path


def _content(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".json":
        yield from _leaves(name, json.loads(path.read_bytes()))
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text().splitlines()):
            yield from _leaves(f"{name}:{number}", json.loads(line))
    elif path.suffix in TEXT:
        for number, line in enumerate(path.read_text().splitlines()):
            yield f"{name}:{number}", line
    else:
        yield name, sha256_file(path)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if "opening" in name:  # one more for each life that was killed after it
        return
    if isinstance(value, dict | list) and value:
        each = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in each:
            yield from _leaves(f"{name}/{key}", one)
    else:
        yield name, value


def _told(folder: Path) -> Iterator[tuple[str, Any]]:
    """All that a journal has of the trials, but how long they took."""
    for trial in open_study(folder).trials:
        yield f"trial {trial.number}", (trial.state.name, trial.params, trial.intermediate_values)
        for note in ("best", "best_epoch", "config", "metrics", "reason", "exploits"):
            yield f"trial {trial.number} {note}", trial.user_attrs.get(note)
