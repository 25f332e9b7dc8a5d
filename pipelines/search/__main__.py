"""Find images by words: the best adapter of a run, or a bare CLIP, on a folder of yours.

Finished embeddings may stand for the images, for the words, or for both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from pipelines.console import done, say
from pipelines.ranges import Range, check_ranges
from trainables.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.search.nearest import Found
    from pipelines.use.model import Model, Source


@dataclass(frozen=True)
class Args:
    queries: Positional[tuple[str, ...]]
    """What to look for, each in quotes: "a dog on the beach". What begins with a dash goes to the
    end, behind `--`."""
    images: Path
    """Folder of images, at any depth; or finished embeddings: a file or a folder of such, or the
    store that `encode --embeddings` made of them."""
    run: Path | None = None
    """Folder of a study or of a training run of retrieval: its best adapter ranks the images."""
    backbone: str = ""
    """Instead of a run: a CLIP as it is, a directory in Hugging Face layout or a Hub id."""
    revision: str | None = None
    """The commit (40 hex digits) of a Hub id."""
    top: Annotated[int, Range(1)] = 12
    """Images shown for each query."""
    out: Path | None = None
    """The page to write. Default: found.html in the run's folder, or here with `--backbone`; with
    `--json` none."""
    index: Path | None = None
    """Folder that keeps the images' embeddings for the next search. Default: index in the run's
    folder; with `--backbone` nothing is kept."""
    json: bool = False
    """Print JSON and nothing else."""
    texts: Path | None = None
    """Instead of words, a file of text embeddings: each row is a query. Between two files of
    embeddings, no model need be named: their cosines rank."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    _check(args)
    from pipelines.search.nearest import nearest
    from pipelines.use.files import Faults, find_images
    from pipelines.use.given import is_given
    from pipelines.use.model import Source, open_model

    paths = find_images(args.images, Faults())
    given = is_given(paths[0])
    bare = given and args.texts is not None and not (args.run or args.backbone)
    source = None if bare else Source(args.run, args.backbone, args.revision)
    model = None if source is None else open_model(source, "retrieval")
    texts, asked = _queries(args, model)
    home = args.index or (args.run / "index" if args.run else None)
    found = nearest(model, paths, texts, asked, args.top, home, Faults())
    if found.index and not found.index.paths:
        raise DataError(f"`{args.images}`: none of its {len(paths):,} images can be read.")
    page = args.out
    if page is None and not args.json and not given:
        page = (args.run or Path()) / "found.html"
    if page is not None:
        _write(page, args, found, model, source)
    if args.json:
        _print_json(args, found, page)
    else:
        _print(found)
    if page is not None and not args.json:
        done([page], f"open {page} in a browser")


def _check(args: Args) -> None:
    if args.texts is not None and args.queries:
        raise ConfigError("`--texts` stands in the place of words: give one of them, got both.")
    if args.texts is None and not all(query.strip() for query in args.queries or ("",)):
        raise ConfigError("`cliptune search` takes words to look for, got none.")


def _queries(args: Args, model: Model | None) -> tuple[Sequence[str], Tensor]:
    """What is looked for, and its embeddings of unit length: (Q, e)."""
    from pipelines.use.given import queries_of
    from pipelines.use.queries import adapt_texts, embed_words

    if args.texts is None:
        assert model is not None
        return args.queries, embed_words(model.adapter, args.queries)
    names, embeds = queries_of(args.texts, model.backbone.embed_dim if model else None)
    return names, adapt_texts(model.adapter if model else None, embeds)


def _write(
    page: Path,
    args: Args,
    found: Found,
    model: Model | None,
    source: Source | None,
) -> None:
    from pipelines.search.found_page import render
    from trainables.files import write_bytes

    by = (model.name, source.flags) if model and source else ("cosine", f"--texts {args.texts}")
    write_bytes(page, render(found.queries, found.searched, args.images, *by).encode())


def _print(found: Found) -> None:
    index = found.index
    if index is None:
        say(f"{found.searched:,} embeddings")
    else:
        bad = f", {len(index.bad):,} cannot be read" if index.bad else ""
        kept = f"; kept in {index.kept}" if index.kept else "; not kept, `--index FOLDER` would"
        say(f"{found.searched:,} images, {index.new:,} new{bad}{kept}")
    for query in found.queries:
        say(f"\n{query.text}")
        for place, match in enumerate(query.matches, 1):
            say(f"  {place:>3}  {match.path}")
    say("")


def _print_json(args: Args, found: Found, page: Path | None) -> None:
    bad, new = (found.index.bad, found.index.new) if found.index else ({}, 0)
    value = {
        **{"folder": str(args.images), "images": found.searched, "new": new},
        "unreadable": [{"path": str(p), "error": reason} for p, reason in bad.items()],
        "queries": [
            {
                "query": query.text,
                "matches": [{"path": str(m.path), "cosine": m.cosine} for m in query.matches],
            }
            for query in found.queries
        ],
        "page": None if page is None else str(page),
    }
    say(json.dumps(value, indent=1))


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("search")
