"""The page about what adapters learned: words, the worth of each vector, the moves.

Flows in: the parsed explain.json. Flows out: explain.html, which needs no network and no script,
and explain.md. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pipelines.explain import charts, sentences
from pipelines.explain import map_charts as drawn
from pipelines.pages import svg
from pipelines.pages.layout import environment
from pipelines.pages.numbers import Metric
from trainables.files import write_bytes

NAMES = {"cosine": "cosine", "euclidean": "Euclidean"}
CHARTED = 20  # classes with vectors of their own whose charts are drawn


@dataclass(frozen=True)
class Vector:
    """One learned vector: its place, and by each measure its words and its corrected p."""

    number: int
    words: Mapping[str, list[Mapping[str, Any]]]
    corrected: Mapping[str, float]


@dataclass(frozen=True)
class Prompt:
    """Vectors that stand together: of all classes, or of one."""

    name: str  # of the class, or ""
    vectors: list[Vector]
    charts: list[Markup]


@dataclass(frozen=True)
class Section:
    """The part of the page about one adapter of one run."""

    entry: Mapping[str, Any]
    anchor: str
    metric: Metric
    lines: list[str]
    prompts: list[Prompt]
    worth: tuple[Markup, Markup] | None  # charts of the ablation: taken out, replaced
    maps: list[tuple[str, Markup, Markup]]
    legend: Markup | None


def write_page(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write explain.html and explain.md into `folder`."""
    paths = [folder / "explain.html", folder / "explain.md"]
    for path, text in zip(paths, render(found), strict=True):
        write_bytes(path, text.encode())
    return paths


def render(found: Mapping[str, Any]) -> tuple[str, str]:
    """The HTML page and the Markdown, in this order."""
    with svg.style():
        sections = [_section(found, entry, n) for n, entry in enumerate(found["entries"], 1)]
    context = {
        "found": found,
        "headline": sentences.headline(found),
        "sections": sections,
        "seeds": [sentences.seeds(one) for one in found["stability"]],
        "method": sentences.method(found),
        "title": sentences.title,
        "cosine": sentences.cosine,
        "first": sentences.first,
        "hues": {},
    }
    html, markdown = (
        environment(escape=escape).get_template(f"explain.{kind}.j2").render(context)
        for kind, escape in (("html", True), ("md", False))
    )
    return html, markdown


def _section(found: Mapping[str, Any], entry: Mapping[str, Any], number: int) -> Section:
    metric, prompt = Metric.of(entry["val"]["metric"]), entry["prompt"]
    worth = prompt["ablation"] if prompt else None
    embeddings = entry["embeddings"]
    return Section(
        entry=entry,
        anchor=f"adapter-{number}",
        metric=metric,
        lines=sentences.of(found, entry),
        prompts=_prompts(prompt, number) if prompt else [],
        worth=charts.worth(worth, metric, f"worth-{number}") if isinstance(worth, dict) else None,
        maps=_maps(embeddings, number),
        legend=_legend(embeddings),
    )


def _prompts(prompt: Mapping[str, Any], number: int) -> list[Prompt]:
    length = prompt["shape"][-2]
    made = []
    for at, name in enumerate(prompt["classes"] or [""]):
        rows = range(at * length, (at + 1) * length)
        vectors = [_vector(prompt["measures"], row, row - rows.start + 1) for row in rows]
        shown = [
            drawn.against_chance(_rows(by, rows), NAMES[measure], f"words-{number}-{at}-{measure}")
            for measure, by in prompt["measures"].items()
            if at < CHARTED
        ]
        made.append(Prompt(name, vectors, shown))
    return made


def _vector(measures: Mapping[str, Any], row: int, number: int) -> Vector:
    return Vector(
        number,
        {measure: by["words"][row] for measure, by in measures.items()},
        {measure: by["corrected"][row] for measure, by in measures.items()},
    )


def _rows(by: Mapping[str, Any], rows: range) -> list[drawn.Row]:
    return [
        drawn.Row(
            by["words"][row][0]["text"],
            by["nearest"][row],
            by["low"][row],
            by["high"][row],
            by["corrected"][row],
        )
        for row in rows
    ]


def _maps(embeddings: Mapping[str, Any], number: int) -> list[tuple[str, Markup, Markup]]:
    made = []
    labels = np.asarray(embeddings["labels"], np.int64)
    for method, places in embeddings["maps"].items():
        name, names = f"map-{number}-{method}", embeddings["classes"]
        before, after = (
            drawn.Map(np.asarray(places[when]["images"]), np.asarray(places[when]["texts"]))
            for when in ("before", "after")
        )
        if embeddings["paired"]:
            pair = (
                charts.pairs(before, labels, f"{name}-before", "before adaptation"),
                charts.pairs(after, labels, f"{name}-after", "after adaptation"),
            )
        else:
            pair = drawn.before_and_after(before, after, labels, names, name)
        made.append((method, *pair))
    return made


def _legend(embeddings: Mapping[str, Any]) -> Markup | None:
    if not embeddings["maps"]:
        return None
    if embeddings["paired"]:
        return drawn.legend(embeddings["classes"] or ["an image"], charts.CAPTION)
    return drawn.legend(embeddings["classes"])
