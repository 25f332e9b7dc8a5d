"""SPICE, where Java and its parser are: captions and references flow in, F-scores flow out.

SPICE alone needs Java and about 400 MB of Stanford's models. Neither is downloaded: where one is
missing, SPICE is left out and the reason is said.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainables.errors import ConfigError
from trainables.metrics.tokens import words

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def why_no_spice() -> str:
    """Why SPICE cannot be computed here, in words; empty where it can."""
    if shutil.which("java") is None:
        return "SPICE needs Java, and there is no `java` on the path."
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        return "SPICE needs `pip install cliptune[spice]`."
    lib = Path(found.submodule_search_locations[0]) / "spice" / "lib"
    missing = [jar for jar in JARS if not (lib / jar).is_file()]
    if missing:
        return f"SPICE needs Stanford's `{'`, `'.join(missing)}` in `{lib}`."
    return ""


def spice(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
    """SPICE (Anderson et al. 2016, arXiv:1607.08822) in [0, 1], by pycocoevalcap: the F-score of
    the objects, attributes and relations that the caption and its references name; (N,) float64,
    NaN where the parser found none."""
    reason = why_no_spice()
    if reason:
        raise ConfigError(reason)
    scorer = importlib.import_module("pycocoevalcap.spice.spice").Spice()
    theirs = {n: [" ".join(words(text)) for text in own] for n, own in enumerate(references)}
    ours = {n: [" ".join(words(caption))] for n, caption in enumerate(captions)}
    _, scores = scorer.compute_score(theirs, ours)
    return torch.tensor([score["All"]["f"] for score in scores], dtype=torch.float64)
