"""What is done to a text before it is tokenised, where a model was trained on such texts alone.

Flows in: a text as somebody wrote it. Flows out: the text that the model knows.
"""

from __future__ import annotations

import string
from typing import Literal, TypeAlias

Cleaning: TypeAlias = Literal["none", "canonicalize"]
PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def clean(text: str, how: Cleaning) -> str:
    """`canonicalize`: without punctuation, in lower case, as big_vision trained its SigLIP."""
    if how == "none":
        return text
    return " ".join(text.translate(PUNCTUATION).lower().split())
