"""The texts of somebody else's file: what is wrong with one, and the form in which it is kept."""

from __future__ import annotations

import unicodedata

from trainables.errors import DataError

_LONGEST = 100_000  # characters of a caption


class Refused(DataError):
    """A record breaks a rule; the message is the reason alone."""


def caption(text: str | bytes, number: int) -> str:
    """Caption `number` of an image in Unicode's normal form C, with single blanks."""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise Refused(f"caption {number} is not UTF-8") from error
    check_text(f"caption {number}", text)
    if len(text) > _LONGEST:
        raise Refused(f"caption {number} has {len(text):,} characters, above {_LONGEST:,}")
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise Refused(f"{what} is not text ({type(text).__name__})")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate stands for a byte that was not UTF-8
        raise Refused(f"{what} is not UTF-8") from error
    if "\0" in text:
        raise Refused(f"{what} holds a NUL byte")
    if not text.strip():
        raise Refused(f"{what} is empty")
