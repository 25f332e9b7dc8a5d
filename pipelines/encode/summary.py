"""A store of finished embeddings in words, and the command that goes on from it.

Flows in: the store. Flows out: lines for whoever encoded it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.console import word
from pipelines.pages.numbers import plural
from trainables.data.shards import ShardSet
from trainables.data.store import read_manifest

TEXTS = {
    "tower": "texts: by the text tower of `{tower}`",
    "pairs": "texts: an embedding beside each image",
    "classes": "texts: of every class, in {templates}",
    "none": "texts: no embeddings of any; classes need `text_emb/` and `text_metadata/`, captions "
    "`text_emb/`, or `--backbone` makes them",
}


def summary(store: Path) -> Iterator[str]:
    about, shards = read_manifest(store), ShardSet.open(store)
    kind = shards.manifest["vectors"]
    half = " in half precision" if kind["half"] else ""
    files = plural(kind["parts"], "file")
    yield f"{kind['rows']:,} vectors of width {kind['width']}{half}, in {files}"
    for split, count in shards.manifest["splits"].items():
        captions = "" if shards.classes else f"{count['captions']:>9,} captions"
        yield f"{split:<6}{count['images']:>9,} images{captions}"
    if shards.classes:
        yield f"{len(shards.classes)} classes, such as: {next(iter(shards.classes))}"
    words = {
        "tower": about["backbone"]["name"],
        "templates": plural(len(shards.templates), "template"),
    }
    yield TEXTS[about["texts"]].format(**words)


def then(store: Path) -> str:
    """The command to run next, for a task that the store has everything for."""
    about: dict[str, Any] = read_manifest(store)
    if ShardSet.open(store).classes:
        return f"cliptune draw --shards {word(store)} --shots 16"
    adapter = {"pairs": " --adapter auto", "none": " --adapter prefix_captioner"}
    return f"cliptune tune --features {word(store)}{adapter.get(about.get('texts', ''), '')}"
