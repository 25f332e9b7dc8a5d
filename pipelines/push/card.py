"""A model card: what the adapter is, what it was measured to be worth, and how it is loaded.

Flows in: a run with its result, if test was opened. Flows out: Markdown with the front matter that
the Hub reads. Nothing is claimed that no file of the run says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.pages.checked import Estimate
from pipelines.pages.layout import cell
from pipelines.report.result import Result, Row
from pipelines.runs.baselines import WORDS
from pipelines.runs.contestants import Contest, Contestant
from trainables.statistics.bootstrap import sign

DOES = {
    "retrieval": "finds images by words, and words for images",
    "classification": "puts images into classes",
    "captioning": "writes captions",
}
PIPELINE = {
    "retrieval": "zero-shot-image-classification",
    "classification": "image-classification",
    "captioning": "image-to-text",
}
USE = {
    "retrieval": 'tuned.search("a dog on the beach", images="photos")',
    "classification": 'tuned.classify("photo.jpg")',
    "captioning": 'tuned.caption("photo.jpg")',
}


@dataclass(frozen=True)
class About:
    """What the card needs to know besides the result."""

    repo: str
    license: str
    base: str
    revision: str | None
    config: dict[str, Any]


def card(about: About, contest: Contest, best: Contestant, result: Result | None) -> str:
    row = result.named.get(best.name) if result else None
    parts = [
        *_front(about, contest, best),
        f"# {about.repo.rpartition('/')[2]}",
        "",
        f"`{best.name}` on a frozen `{about.base}`: it {DOES[contest.task]}. Tuned and measured by "
        "cliptune.",
        "",
        *_load(about, contest),
        *_measured(result, row),
        *_trained(about, contest, result),
        *_limits(contest, result, row),
    ]
    return "\n".join(parts) + "\n"


def _front(about: About, contest: Contest, best: Contestant) -> list[str]:
    # JSON's strings are YAML's, so nothing in a name can end one.
    fields = {
        "license": about.license,
        "library_name": "cliptune",
        "base_model": about.base,
        "base_model_relation": "adapter",
        "pipeline_tag": PIPELINE[contest.task],
        "tags": ["clip", "cliptune", best.name],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return ["---", *lines, "---", ""]


def _load(about: About, contest: Contest) -> list[str]:
    call = f"cliptune.load({json.dumps(about.repo)})"
    return [
        "## Use it",
        "",
        "```python",
        "import cliptune",
        "",
        f"tuned = {call}",
        USE[contest.task],
        "```",
        "",
    ]


def _measured(result: Result | None, row: Row | None) -> Iterator[str]:
    yield from ("## What it is worth", "")
    if result is None or row is None:
        yield "The test split was not opened: nothing is known beyond what val chose it on."
        yield ""
        return
    key, than = result.key, WORDS[result.against]
    yield (
        f"`{key}` on the sealed test split, {result.data['images']:,} images, with 95 % intervals; "
        f"the difference to {than} is paired."
    )
    yield from ("", f"| | {key} | difference to {than} |", "|---|---|---|")
    for one in filter(None, (result.baseline, row)):
        gap = one.gains.get(key)
        yield f"| {cell(one.name)} | {_value(one.metrics[key])} | {_gap(gap) if gap else ''} |"
    yield ""
    if gap := row.gains.get(key):
        shown = {1: "It beats", -1: "It is worse than", 0: "It is not shown to beat"}
        yield f"{shown[sign(gap.low, gap.high, gap.p_holm)]} {than}."
        yield ""
    if row.calibration is not None:
        after = row.calibration.after.ece
        yield f"Expected calibration error after val's temperature: {after:.4f}."
        yield ""
    opened = len(result.test_openings)
    yield f"Test was opened {opened} time{'s' * (opened > 1)} for this run."
    yield ""


def _trained(about: About, contest: Contest, result: Result | None) -> Iterator[str]:
    yield from ("## How it was trained", "")
    if result is not None:
        yield f"- Data: shards with the hash `{str(result.data['digest'])[:16]}`."
    if contest.draw is not None:
        every = contest.draw.names
        more = f" and {len(every) - 10} more" * (len(every) > 10)
        yield f"- Classes: {', '.join(map(cell, every[:10]))}{more}."
        yield f"- {contest.draw.shots} images a class, seed {contest.draw.seed}."
    yield f"- Chosen on val, by `{contest.metric}`; test was sealed until it was chosen."
    if about.revision:
        yield f"- Frozen model: `{about.base}` at `{about.revision}`."
    yield from ("", "Configuration:", "", "```json")
    yield json.dumps(about.config, indent=1, ensure_ascii=False)
    yield from ("```", "")
    if result is not None:
        yield from ("## Protocol", "", *(f"- {line}" for line in result.protocol), "")


def _limits(contest: Contest, result: Result | None, row: Row | None) -> Iterator[str]:
    yield from ("## Limits", "")
    yield "- The numbers hold for images like those of the data above, and for no others."
    if contest.task == "classification":
        yield "- Intervals are over images of these classes; other classes differ by more."
    if result is None or row is None:
        yield "- It was not measured on test."


def _value(one: Estimate) -> str:
    return f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]"


def _gap(one: Estimate) -> str:
    p = f", p = {one.p:.4f}" if one.p is not None else ""
    return f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]{p}"
