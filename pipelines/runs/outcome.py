"""Whether a stage's outcome is still there and whole, so that a second call need do nothing.

Flows in: the JSON of an outcome, with the hash of its inputs, its own hash and those of the pages
beside it. Flows out: whether the same inputs would make the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.console import say
from trainables.errors import DataError
from trainables.files import read_hashed, sha256_file, write_hashed


def write_outcome(path: Path, value: Mapping[str, Any], inputs: str, pages: Iterable[Path]) -> None:
    """Write the JSON of an outcome, once its pages lie beside it."""
    hashes = {page.name: sha256_file(page) for page in pages}
    write_hashed(path, {**value, "inputs": inputs, "pages": hashes})


def stands(path: Path, form: str, inputs: str) -> bool:
    """Whether the outcome in `path` is of these `inputs`. A damaged one is said and made again:
    right for measurements on val alone."""
    if not path.exists():
        return False
    try:
        found = read_hashed(path, form)
    except DataError as error:
        say(f"{error} It is made again.")
        return False
    if found.get("inputs") != inputs:
        return False
    for name, expected in found.get("pages", {}).items():
        page = path.with_name(name)
        if not page.is_file() or sha256_file(page) != expected:
            say(f"{page} is missing or was altered: it is made again.")
            return False
    return "pages" in found


def measured(path: Path, form: str, inputs: str) -> bool:
    """The same for measurements on test, which are not repeated without being asked for."""
    if not path.exists():
        return False
    help = "Restore it, or remove it and evaluate again, which counts as one more opening of test."
    return bool(read_hashed(path, form, help).get("inputs") == inputs)
