"""The numbers of explain.json in words that claim no more than they show.

Flows in: the parsed explain.json. Flows out: the headline, the lines under each adapter, and the
method; the same for the page and the Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipelines.pages.numbers import Metric, number, plural, probability
from trainables.statistics.bootstrap import sign

LEVEL = 0.05
HITS = Metric.of("accuracy")


def title(found: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The adapter's name, with its run's where there are several."""
    several = len({one["run"] for one in found["entries"]}) > 1
    return f"{entry['name']}, {PurePath(entry['run']).name}" if several else entry["name"]


def headline(found: Mapping[str, Any]) -> str:
    with_words = [one for one in found["entries"] if one["prompt"]]
    if with_words:
        first = next((one for one in with_words if one["selected"]), with_words[0])
        close = _close(first["prompt"]["measures"]["cosine"])
        who = f"{_share(close, _count(first))} of {first['name']}"
        began = " (where it began)" if close and _began(first) else ""
        return f"{who} {_nearer(close)}, by cosine{began}{_where(found, first)}"
    names = ", ".join(dict.fromkeys(one["name"] for one in found["entries"]))
    return f"What adapting did to the embeddings: {names}"


def _where(found: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The run, where there are several."""
    several = len({one["run"] for one in found["entries"]}) > 1
    return f" ({PurePath(entry['run']).name})" if several else ""


def _count(entry: Mapping[str, Any]) -> int:
    return len(entry["prompt"]["measures"]["cosine"]["p"])


def _close(by: Mapping[str, Any]) -> int:
    """How many vectors are nearer to a word than chance."""
    return sum(p < LEVEL for p in by["corrected"])


def _began(entry: Mapping[str, Any]) -> str:
    """The words that a prompt started from, if it did."""
    init = entry["prompt"]["init"]
    return "" if init in (None, "random") else str(init)


def _share(close: int, count: int) -> str:
    return f"{close or 'None'} of {plural(count, 'vector')}"


def _nearer(close: int) -> str:
    return f"{'is' if close < 2 else 'are'} nearer to a word than chance"


def first(text: str) -> str:
    """`text` with a capital; the rest, as in `R@1`, stays."""
    return text[0].upper() + text[1:]


def of(found: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    """All sentences about one adapter."""
    return [*_prompt(found, entry), *_worth(entry), _val(entry), *_moved(entry), *_votes(entry)]


def _prompt(found: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    if entry["prompt"] is None:
        return [f"{entry['name']} has no prompt vectors, so there are no words to read."]
    count, draws = _count(entry), found["draws"]
    lines = [
        f"By {'Euclidean distance' if measure == 'euclidean' else measure}, "
        f"{_share(close := _close(by), count).lower()} {_nearer(close)} (Holm, 5 %)."
        for measure, by in entry["prompt"]["measures"].items()
    ]
    if began := _began(entry):
        lines.append(
            f"The prompt began at the words “{began}”: being near them shows that it stayed, not "
            "what it learned."
        )
    least = int(count / LEVEL)  # p = count / (draws + 1) must be below the level
    if count / (draws + 1) >= LEVEL:
        lines.append(
            f"No vector could be: after Holm, {plural(draws, 'random vector')} give {count} no p "
            f"below 0.05. Take --draws {least} or more."
        )
    return lines


def _worth(entry: Mapping[str, Any]) -> list[str]:
    worth = entry["prompt"] and entry["prompt"]["ablation"]
    if not worth:
        return []
    if isinstance(worth, str):
        return [f"No ablation: {worth}"]
    metric = Metric.of(worth["metric"])
    spans = [
        f"{metric.bare(min(worth[kind]))} to {metric.bare(max(worth[kind]))}"
        for kind in ("removed", "replaced")
    ]
    return [
        f"{first(metric.label)} on val lost: {spans[0]}{' points' * metric.is_share} when one "
        f"vector is taken out, {spans[1]} when the mean word stands in its place (below 0: gained)."
    ]


def _val(entry: Mapping[str, Any]) -> str:
    val = entry["val"]
    metric = Metric.of(val["metric"])
    images = plural(entry["embeddings"]["images"], "image")
    return (
        f"{first(metric.label)} on the {images} of val: {metric.show(val['after'])}, zero-shot "
        f"{metric.show(val['before'])}. The adapter was chosen on them, so this flatters."
    )


def _moved(entry: Mapping[str, Any]) -> list[str]:
    moved = entry["embeddings"]["moved"]
    texts = "captions" if entry["task"] == "retrieval" else "class texts"
    far = {"images": moved["images"], texts: moved["texts"]}
    parts = [f"{name} moved by {number(value, 3)}" for name, value in far.items() if value]
    still = [name for name, value in far.items() if not value]
    if not parts:
        return [f"Images and {texts} are where they were: what was learned is in the classifier."]
    line = " and ".join(parts) + " (mean cosine distance)"
    line += f"; {still[0]} are where they were" if still else ""
    missing = entry["embeddings"]["missing"]
    return [first(line) + ".", *([f"No map: {missing}"] if missing else [])]


def _votes(entry: Mapping[str, Any]) -> list[str]:
    votes = entry["embeddings"]["neighbours"]
    if votes is None:
        return []
    before, after, gap = votes["before"], votes["after"], votes["difference"]
    who = "nearest image votes" if votes["k"] == 1 else f"{votes['k']} nearest images vote"
    told = f"The {who} for an image's own class in {HITS.show(before['value'])}"
    if not entry["embeddings"]["moved"]["images"]:
        return [f"{told}, before as after."]
    sure = "" if sign(gap["low"], gap["high"], gap["p"]) else ", not shown to differ"
    return [
        f"{told} before and {HITS.show(after['value'])} after: {HITS.gain(gap['difference'])} "
        f"points (95 % interval {HITS.gain(gap['low'])} to {HITS.gain(gap['high'])}, "
        f"{probability(gap['p'])}{sure})."
    ]


@dataclass(frozen=True)
class Seeds:
    """One prompt over several runs: a sentence, and its rows (what, found, random, its 95 %)."""

    name: str
    sentence: str
    rows: list[tuple[str, float, float, float]]
    pairs: list[Mapping[str, Any]]


KINDS = {
    "cosine": "cosine, same place",
    "matched_cosine": "cosine, best matching",
    "words": "shared nearest words, same place",
    "matched_words": "shared nearest words, best matching",
}


def seeds(one: Mapping[str, Any]) -> Seeds:
    mean, random, high = one["mean"], one["random"], one["random_high"]
    above = [text for key, text in KINDS.items() if mean[key] > high[key]]
    count, name = len(one["runs"]), one["adapter"]
    told = f"The prompts of {count} runs of {name} "
    if above:
        told += f"agree more than random ones by {' and '.join(above)}."
    else:
        told += "agree no more than random ones: what one says, another seed need not."
    rows = [(text, mean[key], random[key], high[key]) for key, text in KINDS.items()]
    return Seeds(name, told, rows, one["pairs"])


def cosine(value: float) -> str:
    return number(value, 3)


def method(found: Mapping[str, Any]) -> list[str]:
    """The method, for whoever reads the numbers."""
    return [
        "Train and val alone: test is sealed, and nothing here opens it.",
        f"Chance: {found['draws']:,} random directions with the vector's own length. p is the "
        "share that comes as near to a word, each count + 1, corrected by Holm for the number of "
        "vectors, for each distance by itself. Nearer than chance does not mean that the vector "
        "means the word: word embeddings share a direction, and what began at a word may still be "
        "near it.",
        "Words with an ellipsis go on; others end there, as a word or as the end of one.",
        "Ablation: val is measured again without each vector, and with the mean of all word "
        "embeddings in its place. Taking one out also moves all that follows a place forward, "
        "which the tower sees. Vectors work together, so losses do not add up.",
        "Seeds: random prompts have the same lengths; the best matching makes even those agree a "
        "little. Prompts that began at the same words, or with one seed, agree for that reason "
        "too.",
        "Maps: one for before, one for after, the second turned and mirrored onto the first; on "
        "one map, who stands beside whom counts, not distances or axes. Trustworthiness says how "
        "many neighbours on the map are neighbours in the joint space: 1 all, about 0.5 a random "
        "map.",
        "Neighbours vote in the joint space itself, each image left out in turn. The interval is a "
        "paired bootstrap over val's images.",
    ]
