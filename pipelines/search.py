"""Find images by words: the best adapter of a run, or a bare CLIP, on a folder of yours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from pipelines.console import done, say
from trainables.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pipelines.using.index import Indexed
    from pipelines.using.model import Model, Source
    from pipelines.using.ranking import Query


@dataclass(frozen=True)
class Args:
    queries: Positional[tuple[str, ...]]
    """What to look for, each in quotes: "a dog on the beach"."""
    images: Path
    """Folder of images, at any depth."""
    run: Path | None = None
    """Folder of a study or of a training run of retrieval: its best adapter ranks the images."""
    backbone: str = ""
    """Instead of a run: a CLIP as it is, a directory in Hugging Face layout or a Hub id."""
    revision: str | None = None
    """The commit (40 hex digits) of a Hub id."""
    top: int = 12
    """Images shown for each query."""
    out: Path | None = None
    """The page to write. Default: found.html in the run's folder, or here with `--backbone`; with
    `--json` none."""
    index: Path | None = None
    """Folder that keeps the images' embeddings for the next search. Default: index in the run's
    folder; with `--backbone` nothing is kept."""
    json: bool = False
    """Print JSON and nothing else."""


def run(args: Args) -> None:
    if not args.queries or not all(query.strip() for query in args.queries):
        raise ConfigError("`cliptune search` takes words to look for, got none.")
    if args.top < 1:
        raise ConfigError(f"`--top` must be at least 1, got {args.top}.")
    from pipelines.using.files import Faults, find_images
    from pipelines.using.index import index_files
    from pipelines.using.model import Source, open_model
    from pipelines.using.ranking import rank

    source = Source(args.run, args.backbone, args.revision)
    paths = find_images(args.images, Faults())
    model = open_model(source, "retrieval")
    home = args.index or (args.run / "index" if args.run else None)
    found = index_files(model, paths, home)
    if not found.paths:
        raise DataError(f"`{args.images}`: none of its {len(paths):,} images can be read.")
    queries = rank(model, found, args.queries, args.top)
    page = args.out
    if page is None and not args.json:
        page = (args.run or Path()) / "found.html"
    if page is not None:
        _write(page, args, queries, found, model, source)
    if args.json:
        _print_json(args, queries, found, page)
    else:
        _print(queries, found)
        assert page is not None
        done([page], f"open {page} in a browser")


def _write(
    page: Path, args: Args, queries: list[Query], found: Indexed, model: Model, source: Source
) -> None:
    from pipelines.using.page import render
    from trainables.files import write_bytes

    text = render(queries, len(found.paths), args.images, model.name, source.flags)
    write_bytes(page, text.encode())


def _print(queries: list[Query], found: Indexed) -> None:
    bad = f", {len(found.bad):,} cannot be read" if found.bad else ""
    kept = f"; kept in {found.kept}" if found.kept else "; not kept, `--index FOLDER` would"
    say(f"{len(found.paths):,} images, {found.new:,} new{bad}{kept}")
    for query in queries:
        say(f"\n{query.text}")
        for match in query.matches:
            say(f"  {match.score:.4f}  {match.path}")
    say("")


def _print_json(args: Args, queries: list[Query], found: Indexed, page: Path | None) -> None:
    value = {
        **{"folder": str(args.images), "images": len(found.paths), "new": found.new},
        "unreadable": [{"path": str(p), "error": reason} for p, reason in found.bad.items()],
        "queries": [
            {
                "query": query.text,
                "matches": [{"path": str(m.path), "score": m.score} for m in query.matches],
            }
            for query in queries
        ],
        "page": None if page is None else str(page),
    }
    say(json.dumps(value, indent=1))


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("search")
