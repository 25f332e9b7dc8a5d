"""How a text is cleaned before it is tokenised, where a model was trained on cleaned texts alone.

Flows in: a text as somebody wrote it, or as a web page had it. Flows out: the text as the model's
training had it.
"""

from __future__ import annotations

import html
import string
from collections.abc import Iterable
from importlib import metadata
from typing import Literal, TypeAlias

from ftfy import fix_text

Cleaning: TypeAlias = Literal["none", "openai", "canonicalize"]
PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def clean(text: str, how: Cleaning) -> str:
    """`openai`: as CLIP's own tokenizer begins (Radford et al. 2021): wrongly decoded characters
    mended, curly quotes straightened, HTML entities resolved twice. `canonicalize`: then also
    without punctuation and in lower case, as open_clip does for SigLIP."""
    if how == "none":
        return text
    text = _repaired(text)
    if how == "canonicalize":
        text = text.translate(PUNCTUATION).lower()
    return " ".join(text.split())


def repairs(texts: Iterable[str], how: Cleaning) -> int:
    """How many texts cleaning changes in more than their spaces (and, in canonical form, their case
    and punctuation)."""
    if how == "none":
        return 0
    return sum(_repaired(text).split() != text.split() for text in texts)


def versions(how: Cleaning) -> dict[str, str]:
    """The versions of all that decides about a cleaned text, for a store's key."""
    return {} if how == "none" else {"how": how, "ftfy": metadata.version("ftfy")}


def _repaired(text: str) -> str:
    if text.isascii() and text.isprintable() and "&" not in text:  # nothing to mend
        return text
    return html.unescape(html.unescape(fix_text(text)))
