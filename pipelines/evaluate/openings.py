"""The log of test openings: a run's numbers are worth less the more often test was looked at.

Flows in: an opening that is about to happen. Flows out: all openings so far, on disk before test is
read. The log is only appended to. Each line holds the hash of the line before it, so that a line
that was cut, changed or taken out is found; the damage is then named in every later result.
Openings that a result of the same folder lists are kept even if the log lost them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.files import read_json, sha256_bytes

NAME = "test_openings.jsonl"
RESULTS = ("result*.json", "arena.json")
Opening = dict[str, Any]


def log_opening(run: Path, opening: Opening) -> list[Opening]:
    """All openings of the run's folder, this one last; it is on disk when this returns."""
    path = run / NAME
    raw = path.read_bytes() if path.exists() else b""
    found, unreadable, damage = _read(raw)
    forgotten = _forgotten(run, found)
    unknown: list[Opening] = [{"at": None, "by": "unknown"}] * (unreadable - len(forgotten))
    if len(forgotten) > unreadable:
        damage.append(f"{len(forgotten)} openings that a result of this run lists are missing")
    lines = raw.splitlines()
    own = opening | {"previous": sha256_bytes(lines[-1]) if lines else ""}
    if damage:
        own["damage"] = damage
    line = json.dumps(own, ensure_ascii=False) + "\n"
    _append(path, ("\n" if raw and not raw.endswith(b"\n") else "") + line)
    return [*forgotten, *unknown, *found, own]


def damages(openings: list[Opening]) -> list[str]:
    """What was ever found wrong with the log, in sentences."""
    every = dict.fromkeys(text for one in openings for text in one.get("damage", []))
    return [
        f"The log of test openings is damaged: {text}. Test may have been opened more often than "
        f"the {len(openings)} times it tells."
        for text in every
    ]


def _read(raw: bytes) -> tuple[list[Opening], int, list[str]]:
    """The openings, how many lines cannot be read, and what is wrong with the log."""
    lines = raw.splitlines()
    found: list[Opening] = []
    damage = ["its last line was cut"] if raw and not raw.endswith(b"\n") else []
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
            if not isinstance(one, dict):
                raise ValueError
        except (ValueError, RecursionError):
            if number < len(lines) or not damage:
                damage.append(f"line {number} cannot be read")
            continue
        before = sha256_bytes(lines[number - 2]) if number > 1 else ""
        if one.get("previous", before) != before:
            damage.append(f"line {number} does not follow the one before it")
        found.append(one)
    return found, len(lines) - len(found), damage


def _forgotten(run: Path, found: list[Opening]) -> list[Opening]:
    """Openings that a result lists and the log does not."""
    missing: list[Opening] = []
    for path in sorted(path for pattern in RESULTS for path in run.glob(pattern)):
        try:
            listed = read_json(path)["test_openings"]
        except (DataError, KeyError, TypeError):
            continue  # who reads the result will say what is wrong with it
        missing += [one for one in listed if one not in found and one not in missing]
    return missing


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DataError(
            f"could not write `{path}`: {error.strerror}. Test was not opened."
        ) from error
