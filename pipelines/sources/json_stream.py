"""A JSON object of long arrays, or one long array, one element at a time.

COCO's caption files and Karpathy's take over 1 GiB as Python objects; read like this, only one
element and one block of text are in memory. `ijson`, whose C backend is twice as fast, is not used:
it replaces some characters without a word, knows no limit on an element, and its parser may end the
process where `json` raises an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from pipelines.sources.base import MEDIA_SUFFIXES
from pipelines.sources.encodings import not_utf8, refuse_wide
from trainables.errors import DataError

_BLOCK = 2**20
_BY_NAME = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*\[?\s*"')
_LONGEST = 2**26  # characters of one element


def entries(path: Path) -> Iterator[tuple[str, Any]]:
    """`(key, element)` for every top-level array in the file, `(key, value)` for other values; of
    a file that is an array `("", element)`."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Reader(file).entries()
    except FileNotFoundError as error:
        raise DataError(f"`{path}` does not exist.") from error
    except RecursionError as error:
        raise DataError(f"`{path}` is nested too deeply.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is {not_utf8(path)}.") from error
    except ValueError as error:
        refuse_wide(path)
        raise DataError(f"`{path}` is not valid JSON: {error}.") from error


def is_list(path: Path) -> bool:
    """Whether the file begins as an array of objects."""
    with path.open("rb") as file:
        return re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", file.read(1_000)) is not None


def names_images(path: Path) -> bool:
    """Whether the file begins as an object that has texts, or lists of them, by names of images."""
    with path.open("rb") as file:
        found = _BY_NAME.match(file.read(1_000))
    if found is None:
        return False
    return PurePath(found[1].decode("utf-8", "replace")).suffix.lower() in MEDIA_SUFFIXES


def items(path: Path, key: str) -> Iterator[Any]:
    """The elements of the top-level array `key`; a file without it is a `DataError`."""
    found = False
    for name, value in entries(path):
        if name == key:
            found = True
            yield value
    if not found:
        raise DataError(f"`{path}` has no elements under `{key}`.")


class _Reader:
    """A window over the text that grows until a whole JSON value fits."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.text = ""
        self.at = 0
        self.ended = False
        self.decoder = json.JSONDecoder()

    def entries(self) -> Iterator[tuple[str, Any]]:
        if self._peek() == "[":
            for _ in self._between("[", "]"):
                yield "", self._value()
        else:
            yield from self._of_object()
        if more := self._peek():
            raise ValueError(f"{more!r} after its end")

    def _of_object(self) -> Iterator[tuple[str, Any]]:
        for _ in self._between("{", "}"):
            key = self._value()
            self._expect(":")
            if self._peek() == "[":
                for _ in self._between("[", "]"):
                    yield key, self._value()
            else:
                yield key, self._value()

    def _between(self, begin: str, end: str) -> Iterator[None]:
        """Stop before each element of an object or array, for the caller to read it."""
        self._expect(begin)
        more = self._peek() != end
        while more:
            yield
            more = self._peek() != end
            if more:
                self._expect(",")
        self._expect(end)

    def _more(self) -> None:
        block = self.file.read(max(_BLOCK, len(self.text) - self.at))
        if len(self.text) - self.at > _LONGEST:
            raise ValueError(f"an element is longer than {_LONGEST:,} characters")
        self.text, self.at, self.ended = self.text[self.at :] + block, 0, not block

    def _peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def _expect(self, character: str) -> None:
        if (found := self._peek()) != character:
            raise ValueError(
                f"expected {character!r}, found {found!r}" if found else "it ends early"
            )
        self.at += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                # A number may go on in the next block: "1" of "12", of "1.5", of "1e5".
                if self.ended or self.text[end : end + 1] not in ("", *".eE+-"):
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:  # its own position counts from the window's start
                    near = self.text[self.at : self.at + 40]
                    raise ValueError(f"{error.msg.lower()} at or after {near!r}") from None
            self._more()
