"""Durable files: each is written whole or not at all, and can be checked afterwards.

Flows in: values and paths. Flows out: files with hashes, and values read back, or a `DataError`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainables.errors import DataError

JSON: dict[type, str] = {str: "string", dict: "object", list: "array"}


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The hash of a JSON value, independent of key order."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    With `durable`, the bytes are on disk when this returns, even if the machine then fails. Files
    that can be made again need no such wait.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"could not write `{path}` ({len(data):,} bytes): {error.strerror}. "
            "What was there before is untouched."
        ) from error


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, help: str = "") -> Any:
    """The JSON value in `path`. A missing or damaged file is a `DataError` naming it, and so is one
    whose own hash, which `write_hashed` gave it, is wrong. `help`: what to do where somebody edited
    it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"`{path}` does not exist.") from error
    except ValueError as error:  # also of a number with thousands of digits
        raise DataError(f"`{path}` is not valid JSON: {error}.") from error
    except RecursionError:
        raise DataError(f"`{path}` is not valid JSON: it is nested without an end.") from None
    if isinstance(value, dict) and "sha256" in value and value["sha256"] != _own_hash(value):
        raise DataError(f"`{path}` was altered since it was written. {help}".rstrip())
    return value


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """A context in which the contents of `path` are taken apart: where they are not as we write
    them, a `DataError` names the file."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"`{path}` lacks the field `{error.args[0]!s:.60}`.") from error
    except (TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"`{path}` has a field of a wrong type: {error!s:.200}.") from error


def write_hashed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own hash in it, for `read_hashed`."""
    rest = {name: one for name, one in value.items() if name != "sha256"}
    rest = json.loads(json.dumps(rest))  # as it will be read
    write_json(path, rest | {"sha256": _own_hash(rest)})


def read_hashed(path: Path, form: str, help: str = "", **fields: type) -> dict[str, Any]:
    """The object of format `form` in `path`, with these fields. An object that has its own hash is
    checked against it. `help`: what to do where it is wrong."""
    try:
        value = read_json(path)
    except DataError as error:
        raise DataError(f"{error} {help}".rstrip()) from error
    if not isinstance(value, dict) or value.get("format") != form:
        raise DataError(f"`{path}` is not of the format {form}. {help}".rstrip())
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind):
            got = f"{value.get(name)!r:.60}"
            said = f"`{path}`: `{name}` must be a JSON {JSON[kind]}, got {got}. {help}"
            raise DataError(said.rstrip())
    return value


def _own_hash(value: Mapping[str, Any]) -> str:
    """The hash of all of an object but the hash."""
    return sha256_json({name: one for name, one in value.items() if name != "sha256"})


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file that we append to; a torn last line (a kill) is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError("it is no object")
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines):
                break
            raise DataError(f"line {number:,} of `{path}` is not valid JSON: {error}.") from None
        rows.append(row)
    return rows


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def now() -> str:
    """The time as an ISO string in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
