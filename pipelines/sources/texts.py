"""The texts of somebody else's file: what is wrong with one, and the form in which it is kept."""

from __future__ import annotations

import ast
import json
import re
import unicodedata

from trainables.errors import DataError

_LONGEST = 100_000  # characters of a caption
_ESCAPE = r"""\\(?:[\\'"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"""
_QUOTED = rf"""(?:'(?:[^'\\\n]|{_ESCAPE})*'|"(?:[^"\\\n]|{_ESCAPE})*")"""
# A printed list of Python's, `['a', "b"]`, or an array of NumPy's, which has no commas.
# What is white is never given back, or a long blank would be tried at each of its places.
_BETWEEN = r"(?:\s*+,\s*+|\s++)"
_PRINTED = re.compile(rf"\[\s*+(?:{_QUOTED}(?:{_BETWEEN}{_QUOTED})*(?:\s*+,)?\s*+)?\]")


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


def listed(text: str) -> list[str] | None:
    """The captions in a text that is a list of them: as JSON, or as Python or NumPy prints one.
    None: it is one caption."""
    text = text.strip()
    if text[:1] not in ("[", "{") or text[-1:] not in ("]", "}"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > _LONGEST or not _PRINTED.fullmatch(text):
            if re.match(r"\[\s*['\"]", text):
                raise Refused("caption begins as a list of texts and is none") from None
            return None
        try:  # each is one string literal: nothing is run
            return [ast.literal_eval(one) for one in re.findall(_QUOTED, text)]
        except (ValueError, SyntaxError) as error:
            raise Refused("caption begins as a list of texts and is none") from error
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise Refused("caption is JSON and no list of texts")


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
