"""How numbers are written: one form for each kind, in the page, its charts and the Markdown.

Flows in: a metric's key (`t2i_r1@1000`) or a bare number. Flows out: text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

NONE = "\N{EN DASH}"
DIRECTIONS = {"t2i": "text-to-image", "i2t": "image-to-text"}
STATISTICS = {
    **{"medr": "median rank", "meanr": "mean rank", "mrr": "MRR"},
    **{"class_accuracy": "mean accuracy of classes", "log_likelihood": "log-likelihood"},
}
CAPTIONS = {
    **{"cider_d": "CIDEr-D", "cider": "CIDEr", "rouge_l": "ROUGE-L", "spice": "SPICE"},
    **{f"bleu{order}": f"BLEU-{order}" for order in range(1, 5)},
    **{"meteor_stem": "METEOR (stems)", "clip_score": "CLIPScore"},
    **{"ref_clip_score": "RefCLIPScore", "sentence_bleu4": "mean sentence BLEU-4"},
    "repetition": "repetition",
}
PERCENT = re.compile(r"r\d+|accuracy|class_accuracy")
LOWER_IS_BETTER = ("medr", "meanr", "repetition")


@dataclass(frozen=True)
class Metric:
    """A metric as readers know it; `pool` is what the key says after its `@`."""

    key: str
    label: str
    pool: str
    scale: float  # what is shown is this times the stored value
    is_share: bool  # shown in per cent; caption metrics are times 100 too, as papers print them
    digits: int
    higher_is_better: bool

    @classmethod
    def of(cls, key: str) -> Metric:
        name, _, pool = key.removeprefix("val/").partition("@")
        direction, _, statistic = name.partition("_")
        if direction not in DIRECTIONS:
            direction, statistic = "", name
        recall = re.fullmatch(r"r(\d+)", statistic)
        word = f"R@{recall[1]}" if recall else (STATISTICS | CAPTIONS).get(statistic, statistic)
        share, hundredfold = bool(PERCENT.fullmatch(statistic)), statistic in CAPTIONS
        rank = statistic in ("medr", "meanr")
        return cls(
            key=key,
            label=f"{DIRECTIONS.get(direction, '')} {word}".strip(),
            pool=f"{int(pool):,}" if pool.isdigit() else pool,
            scale=100.0 if share or hundredfold else 1.0,
            is_share=share,
            digits=1 if share or hundredfold or rank else 3,
            higher_is_better=statistic not in LOWER_IS_BETTER,
        )

    @property
    def is_hundredfold(self) -> bool:
        """Whether the value is shown times 100 without a unit that says so."""
        return self.scale != 1.0 and not self.is_share

    @property
    def points(self) -> str:
        """The unit behind the size of a difference in a sentence."""
        return " points" if self.scale != 1.0 else ""

    def bare(self, value: float | None) -> str:
        """The value without its unit."""
        return number(None if value is None else value * self.scale, self.digits)

    def show(self, value: float | None) -> str:
        text = self.bare(value)
        return f"{text} %" if self.is_share and text != NONE else text

    def gain(self, difference: float | None) -> str:
        """A difference, always with its sign; of shares, it counts percentage points."""
        text = self.bare(difference)
        return f"+{text}" if difference is not None and difference > 0 and text != NONE else text


def number(value: float | None, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    # A likelihood may have any size.
    text = f"{value:.1e}" if abs(value) >= 1e12 else f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def count(value: float | None) -> str:
    return number(value, 0)


def setting(value: object) -> str:
    """A hyperparameter's value, short.

    >>> setting(0.00123456), setting(None), setting("sgd")
    ('0.00123', 'none', 'sgd')
    """
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def probability(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NONE
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def share(value: float | None) -> str:
    text = number(None if value is None else 100 * value, 1)
    return text if text == NONE else f"{text} %"


def plural(value: int, word: str) -> str:
    return f"{value:,} {word}{'' if value == 1 else 's'}"


def first(text: str) -> str:
    """`text` as a sentence begins."""
    return text[:1].upper() + text[1:]
